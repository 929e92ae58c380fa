"""The door to FP8: one function each, whatever the device.

    values, scales = quantize(x, (1, 128))          e4m3 values under one fp32 scale a tile
    scaled_matmul(a, a_scales, b, b_scales, out_dtype=torch.bfloat16)       A B^T of such pairs
    scaled_linear(x, weight, "blockwise")           a linear layer whose three products are in FP8

What they compute stands in reference.py, and backend="torch" runs just that, for any input, on any
device: FP8 as arithmetic. backend="triton" runs kernels, or raises `Unsupported` (../requirements.py) before
it launches anything; it needs tensor cores for e4m3, so sm_89 or newer. None picks by device: triton
for CUDA tensors, torch for all others. quantize gives the same bits everywhere; scaled_linear alone
has gradients.
"""

# M and N rows of two matrices, K what their product sums over, I features in, O features out

from functools import partial

import torch
from torch import Tensor

from ..backend import Backend, chosen
from . import reference
from .reference import Recipe, Tile


def quantize(x_MN: Tensor, tile: Tile, *, backend: Backend | None = None) -> tuple[Tensor, Tensor]:
    """A transposed view is read where it lies, and its values are written row by row."""
    if chosen(backend, x_MN) == "torch":
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
    if chosen(backend, a_MK) == "torch":
        return reference.scaled_matmul(a_MK, a_scales, b_NK, b_scales, out_dtype=out_dtype)
    from . import matmul

    return matmul.scaled_matmul(a_MK, a_scales, b_NK, b_scales, out_dtype)


def scaled_linear(
    x: Tensor, weight_OI: Tensor, recipe: Recipe, *, backend: Backend | None = None
) -> Tensor:
    """Of `x` [..., I] all leading dimensions are rows."""
    doors = partial(quantize, backend=backend), partial(scaled_matmul, backend=backend)
    y_MO = reference.scaled_linear(x.reshape(-1, x.shape[-1]), weight_OI, recipe, *doors)
    return y_MO.view(*x.shape[:-1], len(weight_OI))
