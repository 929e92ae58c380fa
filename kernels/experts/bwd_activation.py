"""Gradient of the experts' activation and of the routing weights (Triton)."""

# M choices sorted by expert, N tokens, K choices per token, F hidden width per expert

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from ..rows.glu import RELU2
from .configs import BWD_ACTIVATION
from .glu import activation_arguments, gate_factor, up_factor


@triton.jit(do_not_specialize=["num_rows", "num_experts"])
def bwd_activation(
    u_ptr,
    topk_weights_ptr,
    choice_ptr,
    offset_ptr,
    gate_ptr,
    up_ptr,
    hidden_ptr,
    dgate_ptr,
    dup_ptr,
    dtopk_weights_ptr,
    num_rows,
    num_experts,
    width,
    limit,
    ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mixture of experts, backward of activation and routing weights; u is dhidden at weight one.

    With the row's routing weight s: ds = sum(u hidden), dgate and dup from dhidden = s u, and
    s hidden for the down matrix's gradient; hidden is recomputed from gate and up. The weight of
    row r is at choice[r]; a row of no expert has ds = 0. dup may overwrite u. A program
    takes ROWS rows.
    Bytes per row, b per element: 6 b F, relu2 4 b F.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mine = row < tl.load(offset_ptr + num_experts)
    choice = tl.load(choice_ptr + row, mask=row < num_rows, other=0)
    s = tl.load(topk_weights_ptr + choice, mask=mine, other=0.0).to(tl.float32)[:, None]
    ds = tl.zeros([ROWS], tl.float32)
    dtype: tl.constexpr = hidden_ptr.dtype.element_ty
    for begin in range(0, width, BLOCK):
        col = begin + tl.arange(0, BLOCK)
        at = row[:, None] * width + col[None, :]
        inside = mine[:, None] & (col < width)[None, :]
        u = tl.load(u_ptr + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION == RELU2:
            positive = tl.maximum(up, 0.0)
            hidden = positive * positive
            dup = s * u * 2.0 * positive
        else:
            gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
            act, slope = gate_factor(gate, limit, ACTIVATION, LIMITED)
            factor = up_factor(up, limit, ACTIVATION, LIMITED)
            hidden = act * factor
            dgate = s * u * factor * slope
            dup = s * u * act
            if LIMITED:
                dup = tl.where(tl.abs(up) <= limit, dup, 0.0)
            tl.store(dgate_ptr + at, dgate.to(dtype), mask=inside)
        tl.store(dup_ptr + at, dup.to(dtype), mask=inside)
        tl.store(hidden_ptr + at, (s * hidden).to(dtype), mask=inside)
        ds += tl.sum(u * hidden, 1)
    tl.store(
        dtopk_weights_ptr + choice, ds.to(dtopk_weights_ptr.dtype.element_ty), mask=row < num_rows
    )


def bwd_activation_launch(
    u_MF: Tensor,
    topk_weights_NK: Tensor,
    order_M: Tensor,
    offsets_E1: Tensor,
    gate_MF: Tensor | None,
    up_MF: Tensor,
    hidden_MF: Tensor,
    dgate_MF: Tensor | None,
    dup_MF: Tensor,
    dtopk_weights_NK: Tensor,
    activation: str,
    limit: float | None,
) -> Launch:
    """Launch of `bwd_activation`."""
    M, F = u_MF.shape
    return Launch(
        kernel=bwd_activation,
        grid=(triton.cdiv(M, BWD_ACTIVATION.tiles["ROWS"]),),
        arguments={
            "u_ptr": u_MF,
            "topk_weights_ptr": topk_weights_NK,
            "choice_ptr": order_M,
            "offset_ptr": offsets_E1,
            "gate_ptr": gate_MF,
            "up_ptr": up_MF,
            "hidden_ptr": hidden_MF,
            "dgate_ptr": dgate_MF,
            "dup_ptr": dup_MF,
            "dtopk_weights_ptr": dtopk_weights_NK,
            "num_rows": M,
            "num_experts": len(offsets_E1) - 1,
            "width": F,
            **activation_arguments(activation, limit),
            **BWD_ACTIVATION.tiles,
        },
        warps=BWD_ACTIVATION.warps,
    )
