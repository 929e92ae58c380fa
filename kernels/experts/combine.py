"""Weighted sum over the experts of a token (Triton)."""

# N tokens, K choices per token, D width

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from .configs import COMBINE


@triton.jit(do_not_specialize=["num_tokens", "choices"])
def combine(
    z_ptr,
    topk_weights_ptr,
    y_ptr,
    num_tokens,
    choices,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mixture of experts, combine: y_n = sum_k topk_weights_nk z_nk, without weights sum_k z_nk.

    A program takes a tile of ROWS x BLOCK. Bytes per token, b per element: b (K + 1) D.
    """
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (token < num_tokens)[:, None] & (col < width)[None, :]
    y = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in range(choices):
        choice = token * choices + k
        at = z_ptr + choice[:, None] * width + col[None, :]
        z = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if topk_weights_ptr is not None:
            topk_weights = tl.load(topk_weights_ptr + choice, mask=token < num_tokens, other=0.0)
            z *= topk_weights.to(tl.float32)[:, None]
        y += z
    at = y_ptr + token[:, None] * width + col[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=inside)


def combine_launch(
    z_MD: Tensor, topk_weights_NK: Tensor | None, y_ND: Tensor, choices: int
) -> Launch:
    """Launch of `combine`."""
    N, D = y_ND.shape
    tiles = COMBINE.tiles
    return Launch(
        kernel=combine,
        grid=(triton.cdiv(N, tiles["ROWS"]), triton.cdiv(D, tiles["BLOCK"])),
        arguments={
            "z_ptr": z_MD,
            "topk_weights_ptr": topk_weights_NK,
            "y_ptr": y_ND,
            "num_tokens": N,
            "choices": choices,
            "width": D,
            **tiles,
        },
        warps=COMBINE.warps,
    )
