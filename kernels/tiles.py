"""What matrix products of every family share on the device."""

# Triton takes an annotation on a kernel's argument for its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl


@triton.jit
def tile_of(num_cols, GROUP: tl.constexpr):
    """(high, across) of a program's tile: GROUP tiles high before one across.

    So what runs at the same time shares columns and rows alike, and both stay in L2.
    """
    program = tl.program_id(0)
    num_high = tl.num_programs(0) // num_cols
    band = program // (GROUP * num_cols) * GROUP
    inside = program % (GROUP * num_cols)
    size = tl.minimum(num_high - band, GROUP)
    return band + inside % size, inside // size
