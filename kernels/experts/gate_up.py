"""Gate and up projections of the experts, fused with the activation (Triton)."""

# M choices sorted by expert, N tokens, K choices per token, E experts, D model width,
# F hidden width

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from ..rows.glu import RELU2
from ..tiles import tile_of
from .configs import config_for, experts_tile, slots
from .glu import activation_arguments, gate_factor, up_factor
from .tiles import EXACT, rows_of


@triton.jit(do_not_specialize=["num_rows", "num_experts", "choices"])
def gate_up(
    x_ptr,
    gate_w_ptr,
    up_w_ptr,
    choice_ptr,
    offset_ptr,
    gate_ptr,
    up_ptr,
    hidden_ptr,
    x_stride,
    num_rows,
    num_experts,
    choices,
    depth,
    width,
    limit,
    ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    E: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Mixture of experts, gate-up: hidden = glu(gate_w_e x, up_w_e x) for the rows of expert e.

    Row r is token choice[r] // K. For relu2 hidden = max(up_w_e x, 0)^2. A program takes BM rows of
    one expert and BN features, and stores gate and up if their pointers are given. FLOPs: 4 D F per
    row, for relu2 2 D F.
    """
    slot, across = tile_of(tl.cdiv(width, BN), GROUP)
    expert, first, end = rows_of(slot, offset_ptr, num_rows, num_experts, BM, E)
    if (expert == num_experts) | (first >= end):
        return

    row = first + tl.arange(0, BM)
    col = across * BN + tl.arange(0, BN)
    choice = tl.load(choice_ptr + tl.minimum(row, end - 1))
    x_offset = choice // choices * x_stride
    w_offset = expert.to(tl.int64) * width * depth
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for k in range(0, depth, BK):
        at = k + tl.arange(0, BK)
        x = tl.load(x_ptr + x_offset[:, None] + at[None, :], mask=at[None, :] < depth, other=0.0)
        w_at = at[:, None] + col[None, :] * depth
        inside = (at < depth)[:, None] & (col < width)[None, :]
        if ACTIVATION != RELU2:
            w = tl.load(gate_w_ptr + w_offset + w_at, mask=inside, other=0.0)
            gate = tl.dot(x, w, gate, input_precision=EXACT)
        w = tl.load(up_w_ptr + w_offset + w_at, mask=inside, other=0.0)
        up = tl.dot(x, w, up, input_precision=EXACT)

    # one 64-bit offset for the whole tile, to spare registers
    offset = first.to(tl.int64) * width
    at = tl.arange(0, BM)[:, None] * width + col[None, :]
    inside = (row < end)[:, None] & (col < width)[None, :]
    dtype: tl.constexpr = hidden_ptr.dtype.element_ty
    # hidden is computed from gate and up as stored, so that the backward recomputes the same
    up = up.to(dtype)
    if up_ptr is not None:
        tl.store(up_ptr + offset + at, up, mask=inside)
    up = up.to(tl.float32)
    if ACTIVATION == RELU2:
        positive = tl.maximum(up, 0.0)
        hidden = positive * positive
    else:
        gate = gate.to(dtype)
        if gate_ptr is not None:
            tl.store(gate_ptr + offset + at, gate, mask=inside)
        act, _ = gate_factor(gate.to(tl.float32), limit, ACTIVATION, LIMITED)
        hidden = act * up_factor(up, limit, ACTIVATION, LIMITED)
    tl.store(hidden_ptr + offset + at, hidden.to(dtype), mask=inside)


def gate_up_launch(
    arch: str,
    x_ND: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    order_M: Tensor,
    offsets_E1: Tensor,
    gate_MF: Tensor | None,
    up_MF: Tensor | None,
    hidden_MF: Tensor,
    choices: int,
    activation: str,
    limit: float | None,
) -> Launch:
    """The launch; gate_MF and up_MF None do not store gate and up."""
    (E, F, D), M = up_EFD.shape, len(hidden_MF)
    config = config_for(arch, "gate_up", x_ND.dtype, M, up_EFD.shape)
    return Launch(
        kernel=gate_up,
        grid=(slots(M, E, config.tiles["BM"]) * triton.cdiv(F, config.tiles["BN"]),),
        arguments={
            "x_ptr": x_ND,
            "gate_w_ptr": gate_EFD,
            "up_w_ptr": up_EFD,
            "choice_ptr": order_M,
            "offset_ptr": offsets_E1,
            "gate_ptr": gate_MF,
            "up_ptr": up_MF,
            "hidden_ptr": hidden_MF,
            "x_stride": x_ND.stride(0),
            "num_rows": M,
            "num_experts": E,
            "choices": choices,
            "depth": D,
            "width": F,
            **activation_arguments(activation, limit),
            "E": experts_tile(E),
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )
