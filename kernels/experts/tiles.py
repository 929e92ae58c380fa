"""Device function of the expert kernels: the expert and rows of a program."""

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

EXACT = tl.constexpr("tf32x3")  # float32 operands of tl.dot; 16-bit ones are exact in any case
BEYOND = tl.constexpr(2**30)  # past every row


@triton.jit
def rows_of(slot, offset_ptr, num_rows, num_experts, BM: tl.constexpr, E: tl.constexpr):
    """(expert, first, end) of a slot: the BM rows from `first` on, of those before `end`.

    Expert e has the slots from offset[e] // BM + e on. These suffice, since
    ceil((b - a) / BM) <= b // BM - a // BM + 1, and need no sum over the experts before it. The
    rows of no expert are those of one more. A slot with first >= end is empty.
    """
    e = tl.arange(0, E)
    last = tl.load(offset_ptr + e + 1, mask=e < num_experts, other=BEYOND)
    expert = tl.sum((last // BM + e < slot).to(tl.int32), 0)
    offset = tl.load(offset_ptr + expert)
    end = tl.load(offset_ptr + expert + 1, mask=expert < num_experts, other=num_rows)
    return expert, offset + (slot - offset // BM - expert) * BM, end
