"""Public API of FP8 with block scales: one function each, on any device.

    values, scales = quantize(x, (1, 128))          e4m3 values, one fp32 scale per tile
    scaled_matmul(a, a_scales, b, b_scales, out_dtype=torch.bfloat16)       A B^T of such pairs
    scaled_linear(x, weight, "blockwise")           a linear layer whose three products are FP8

reference.py defines what they compute, and backend="torch" runs it, for any input on any device:
FP8 as arithmetic. backend="triton" runs kernels, or raises `requirements.Unsupported` before
anything is launched; it needs tensor cores for e4m3, so sm_89 or newer. None chooses by device:
"triton" for CUDA tensors, "torch" for others. quantize gives the same bits on both; only
scaled_linear has gradients.
"""

# M and N rows of two matrices, K what their product sums over, I features in, O features out

from functools import partial

import torch
from torch import Tensor

from ..backend import Backend, choose_backend
from . import reference
from .reference import Recipe, Tile


def quantize(x_MN: Tensor, tile: Tile, *, backend: Backend | None = None) -> tuple[Tensor, Tensor]:
    """Quantization to FP8: (e4m3 values [M, N], fp32 scales [M / rows, N / columns]).

    value * scale is nearest to x, scale = max(amax, 1e-12) / 448 over its tile.

    `tile` (rows, columns) shares a scale, None being all: (1, 128), (128, 128), (1, None) or
    (None, None). `x_MN` may be a transposed view; the values are written row by row.
    Raises Unsupported.
    """
    if choose_backend(backend, x_MN) == "torch":
        return reference.quantize(x_MN, tile)
    from . import quantize

    return quantize.quantize(x_MN, tile)


def scaled_matmul(
    a_MK: Tensor,
    a_scales: Tensor,
    b_NK: Tensor,
    b_scales: Tensor,
    *,
    out_dtype: torch.dtype,
    backend: Backend | None = None,
) -> Tensor:
    """Product of FP8 matrices: A B^T [M, N] in `out_dtype`, of what `quantize` gave for A and B.

    `a_MK`, `b_NK` float8_e4m3fn; scales per tensor, per row, or per 128 along K (and 128 rows).
    Sums are in float32. Raises Unsupported.
    """
    if choose_backend(backend, a_MK) == "torch":
        return reference.scaled_matmul(a_MK, a_scales, b_NK, b_scales, out_dtype=out_dtype)
    from . import matmul

    return matmul.scaled_matmul(a_MK, a_scales, b_NK, b_scales, out_dtype)


def scaled_linear(
    x: Tensor, weight_OI: Tensor, recipe: Recipe, *, backend: Backend | None = None
) -> Tensor:
    """FP8 linear layer: x W^T with activation, weight and gradients quantized by `recipe`.

    `x` [..., I], `weight_OI` [O, I]; recipe "tensorwise", "rowwise" or "blockwise" (1 x 128 and
    128 x 128 tiles: DeepSeek-V3, arXiv 2412.19437, section 3.3). Returns [..., O] in x's dtype;
    gradients to both. Raises Unsupported.
    """
    operators = partial(quantize, backend=backend), partial(scaled_matmul, backend=backend)
    y_MO = reference.scaled_linear(x.reshape(-1, x.shape[-1]), weight_OI, recipe, *operators)
    return y_MO.view(*x.shape[:-1], len(weight_OI))
