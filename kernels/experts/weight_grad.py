"""Gradient of each expert's matrix: sums of outer products over its rows (Triton)."""

# M rows sorted by expert, E experts, O features out, I features in

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from ..tiles import tile_of
from .configs import config_for
from .tiles import EXACT


@triton.jit(do_not_specialize=["choices"])
def weight_grad(
    a_ptr,
    b_ptr,
    choice_ptr,
    offset_ptr,
    c_ptr,
    sum_ptr,
    a_stride,
    b_stride,
    choices,
    height,
    width,
    A_BY_TOKEN: tl.constexpr,
    B_BY_TOKEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grouped GEMM, weight gradient: c_e = a^T b over the rows of expert e, and column sums of a.

    c_e is zero for an expert without rows. A_BY_TOKEN and B_BY_TOKEN read row r at choice[r] // K.
    A program takes BM x BN elements of one expert's c and loops over the rows by BK.
    FLOPs: 2 height width per row.
    """
    expert = tl.program_id(1)
    high, across = tile_of(tl.cdiv(width, BN), GROUP)
    first = tl.load(offset_ptr + expert)
    end = tl.load(offset_ptr + expert + 1)
    i = high * BM + tl.arange(0, BM)
    j = across * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    total = tl.zeros([BM], tl.float32)
    for k in range(first, end, BK):
        row = k + tl.arange(0, BK)
        mine = row < end
        a_row = row.to(tl.int64)
        b_row = a_row
        if A_BY_TOKEN:
            a_row = tl.load(choice_ptr + row, mask=mine, other=0) // choices
        if B_BY_TOKEN:
            b_row = tl.load(choice_ptr + row, mask=mine, other=0) // choices
        a_at = a_ptr + a_row[None, :] * a_stride + i[:, None]
        a = tl.load(a_at, mask=(i < height)[:, None] & mine[None, :], other=0.0)
        b_at = b_ptr + b_row[:, None] * b_stride + j[None, :]
        b = tl.load(b_at, mask=mine[:, None] & (j < width)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=EXACT)
        if sum_ptr is not None:
            total += tl.sum(a.to(tl.float32), 1)

    at = c_ptr + (expert.to(tl.int64) * height + i[:, None]) * width + j[None, :]
    inside = (i < height)[:, None] & (j < width)[None, :]
    tl.store(at, acc.to(c_ptr.dtype.element_ty), mask=inside)
    if sum_ptr is not None:
        if across == 0:
            sum_at = sum_ptr + expert * height + i
            tl.store(sum_at, total.to(sum_ptr.dtype.element_ty), mask=i < height)


def weight_grad_launch(
    arch: str,
    a: Tensor,
    b: Tensor,
    offsets_E1: Tensor,
    c_EOI: Tensor,
    sum_EO: Tensor | None = None,
    *,
    choice_M: Tensor | None = None,
    choices: int = 1,
    a_by_token: bool = False,
    b_by_token: bool = False,
) -> Launch:
    """The launch. A factor is sorted by expert, or by token with `choices` rows for each token."""
    E, O, I = c_EOI.shape
    config = config_for(arch, "weight_grad", a.dtype, max(len(a), len(b)), c_EOI.shape)
    tiles = triton.cdiv(O, config.tiles["BM"]) * triton.cdiv(I, config.tiles["BN"])
    return Launch(
        kernel=weight_grad,
        grid=(tiles, E),
        arguments={
            "a_ptr": a,
            "b_ptr": b,
            "choice_ptr": choice_M,
            "offset_ptr": offsets_E1,
            "c_ptr": c_EOI,
            "sum_ptr": sum_EO,
            "a_stride": a.stride(0),
            "b_stride": b.stride(0),
            "choices": choices,
            "height": O,
            "width": I,
            "A_BY_TOKEN": a_by_token,
            "B_BY_TOKEN": b_by_token,
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )
