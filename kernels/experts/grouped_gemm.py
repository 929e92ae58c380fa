"""Grouped GEMM: rows times the matrix of their expert (Triton)."""

# M rows sorted by expert, E experts, I features in, O features out

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from ..tiles import tile_of
from .configs import config_for, experts_tile, slots
from .tiles import EXACT, rows_of


@triton.jit
def product(acc, x_ptr, x_offset, w_ptr, w_depth, w_col, col, depth, width, BK: tl.constexpr):
    """acc + x w, for the rows of x that begin at elements `x_offset` and columns `col` of w."""
    for k in range(0, depth, BK):
        at = k + tl.arange(0, BK)
        x = tl.load(x_ptr + x_offset[:, None] + at[None, :], mask=at[None, :] < depth, other=0.0)
        inside = (at < depth)[:, None] & (col < width)[None, :]
        w = tl.load(w_ptr + at[:, None] * w_depth + col[None, :] * w_col, mask=inside, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=EXACT)
    return acc


@triton.jit(do_not_specialize=["num_rows", "num_experts", "choices"])
def grouped_gemm(
    x_ptr,
    w_ptr,
    other_x_ptr,
    other_w_ptr,
    bias_ptr,
    choice_ptr,
    offset_ptr,
    y_ptr,
    x_stride,
    w_expert,
    w_depth,
    w_col,
    num_rows,
    num_experts,
    choices,
    depth,
    width,
    X_BY_TOKEN: tl.constexpr,
    Y_BY_CHOICE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    E: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grouped GEMM: y = x w_e (+ x' w'_e) (+ b_e) for the rows of expert e, 0 for those of none.

    X_BY_TOKEN reads row r of x at choice[r] // K, Y_BY_CHOICE writes row r of y at choice[r]. A
    program takes BM rows of one expert and BN columns. FLOPs: 2 depth width per row and product.
    """
    slot, across = tile_of(tl.cdiv(width, BN), GROUP)
    expert, first, end = rows_of(slot, offset_ptr, num_rows, num_experts, BM, E)
    if first >= end:
        return

    row = first + tl.arange(0, BM)
    col = across * BN + tl.arange(0, BN)
    x_row = tl.minimum(row, end - 1).to(tl.int64)
    y_row = x_row
    if X_BY_TOKEN or Y_BY_CHOICE:
        choice = tl.load(choice_ptr + x_row)
        if X_BY_TOKEN:
            x_row = choice // choices
        if Y_BY_CHOICE:
            y_row = choice
    x_offset = x_row * x_stride
    w_offset = expert.to(tl.int64) * w_expert
    acc = tl.zeros([BM, BN], tl.float32)
    if expert < num_experts:
        w_ptr += w_offset
        acc = product(acc, x_ptr, x_offset, w_ptr, w_depth, w_col, col, depth, width, BK)
        if other_x_ptr is not None:
            w_ptr = other_w_ptr + w_offset
            acc = product(acc, other_x_ptr, x_offset, w_ptr, w_depth, w_col, col, depth, width, BK)
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + expert * width + col, mask=col < width, other=0.0)
            acc += bias.to(tl.float32)[None, :]

    at = y_ptr + y_row[:, None] * width + col[None, :]
    inside = (row < end)[:, None] & (col < width)[None, :]
    tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=inside)


def grouped_gemm_launch(
    arch: str,
    x_MI: Tensor,
    weight_EIO: Tensor,
    bias_EO: Tensor | None,
    offsets_E1: Tensor,
    y_MO: Tensor,
    *,
    choice_M: Tensor | None = None,
    choices: int = 1,
    x_by_token: bool = False,
    y_by_choice: bool = False,
    other: tuple[Tensor, Tensor] | None = None,
) -> Launch:
    """The launch. x and y are sorted by expert, unless x_by_token or y_by_choice.

    `weight_EIO` may have any strides: a transposed view multiplies by the transposed matrix.
    `other` is a second (x, weight) of the same layout, whose product is added.
    """
    E, I, O = weight_EIO.shape
    other_x_MI, other_weight_EIO = other or (None, None)
    config = config_for(arch, "grouped_gemm", x_MI.dtype, len(y_MO), weight_EIO.shape)
    BM, BN = config.tiles["BM"], config.tiles["BN"]
    w_expert, w_depth, w_col = weight_EIO.stride()
    return Launch(
        kernel=grouped_gemm,
        grid=(slots(len(y_MO), E, BM) * triton.cdiv(O, BN),),
        arguments={
            "x_ptr": x_MI,
            "w_ptr": weight_EIO,
            "other_x_ptr": other_x_MI,
            "other_w_ptr": other_weight_EIO,
            "bias_ptr": bias_EO,
            "choice_ptr": choice_M,
            "offset_ptr": offsets_E1,
            "y_ptr": y_MO,
            "x_stride": x_MI.stride(0),
            "w_expert": w_expert,
            "w_depth": w_depth,
            "w_col": w_col,
            "num_rows": len(y_MO),
            "num_experts": E,
            "choices": choices,
            "depth": I,
            "width": O,
            "X_BY_TOKEN": x_by_token,
            "Y_BY_CHOICE": y_by_choice,
            "E": experts_tile(E),
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )
