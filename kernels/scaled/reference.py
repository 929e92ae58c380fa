"""Reference of the operators in plain torch: the specification that all implementations match.

An FP8 number is e4m3, by the OCP's 8-bit floating point specification: three bits of mantissa,
448 at most. Values are exact in every dtype that follows; products are summed in float32, or in
float64 for a result in it.
"""

# M and N rows of two matrices, K what their product sums over, I features in, O features out

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Recipe = Literal["tensorwise", "rowwise", "blockwise"]
Tile = tuple[int | None, int | None]  # rows, columns; None is all there are

E4M3_MAX = 448.0
SMALLEST_AMAX = 1e-12  # a tile of zeros needs a scale too
BLOCK = 128
TENSOR: Tile = (None, None)
ROW: Tile = (1, None)
STRIP: Tile = (1, BLOCK)
SQUARE: Tile = (BLOCK, BLOCK)
TILES: dict[Recipe, tuple[Tile, Tile]] = {  # of the activation, of the weight
    "tensorwise": (TENSOR, TENSOR),
    "rowwise": (ROW, ROW),
    "blockwise": (STRIP, SQUARE),
}


def quantize(x_MN: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """(e4m3 values [M, N], fp32 scales [M / rows, N / columns]), value * scale being nearest to x.

    scale = max(amax, 1e-12) / 448 over each tile; the last tile of a row or column may be short.
    """
    M, N = x_MN.shape
    rows, columns = tile[0] or M, tile[1] or N
    padded = F.pad(x_MN.float(), (0, -N % columns, 0, -M % rows))
    tiles = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    amax = tiles.abs().amax((1, 3)).clamp(min=SMALLEST_AMAX)
    scales = amax / amax.new_tensor(
        E4M3_MAX
    )  # dividing by a Python number, CUDA multiplies by its rounded reciprocal
    values = (tiles / scales[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    return values.to(torch.float8_e4m3fn).flatten(2).flatten(0, 1)[:M, :N], scales


def decode(values_MN: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """value * scale [M, N] in `dtype`, the inverse of `quantize` up to rounding."""
    M, N = values_MN.shape
    rows, columns = sharing(M, scales.shape[0]), sharing(N, scales.shape[1])
    scales_MN = scales.to(dtype).repeat_interleave(rows, 0)[:M]
    return values_MN.to(dtype) * scales_MN.repeat_interleave(columns, 1)[:, :N]


def sharing(size: int, num_scales: int) -> int:
    """Number of rows, or columns, of `size` that share a scale: all, one, or a block of 128."""
    if num_scales == 1:
        return size
    return 1 if num_scales == size else BLOCK


def scaled_matmul(
    a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
) -> Tensor:
    """A B^T in `out_dtype` of the values and scales that `quantize` gave for A and B."""
    wide = torch.promote_types(out_dtype, torch.float32)
    return F.linear(decode(a_MK, a_scales, wide), decode(b_NK, b_scales, wide)).to(out_dtype)


def scaled_linear(
    x_MI: Tensor,
    weight_OI: Tensor,
    recipe: Recipe,
    quantize: Callable[..., tuple[Tensor, Tensor]] = quantize,
    scaled_matmul: Callable[..., Tensor] = scaled_matmul,
) -> Tensor:
    """x W^T with both factors quantized to FP8 by the recipe's tiles; so are the gradients:

    dX = dY W with tiles along O, of an activation and a weight; dW = dY^T X with tiles of
    activations along the tokens, both quantized again (DeepSeek-V3, arXiv 2412.19437, section 3.3).
    """
    return _ScaledLinear.apply(x_MI, weight_OI, recipe, quantize, scaled_matmul)


class _ScaledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_MI: Tensor,
        weight_OI: Tensor,
        recipe: Recipe,
        quantize: Callable[..., tuple[Tensor, Tensor]],
        scaled_matmul: Callable[..., Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        ctx.recipe, ctx.quantize, ctx.scaled_matmul = recipe, quantize, scaled_matmul
        of_x, of_weight = TILES[recipe]
        factors = *quantize(x_MI, of_x), *quantize(weight_OI, of_weight)
        return scaled_matmul(*factors, out_dtype=x_MI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy_MO,), (x_MI, weight_OI) = gradients, ctx.saved_tensors
        of_x, of_weight = TILES[ctx.recipe]
        factors = *ctx.quantize(dy_MO, of_x), *ctx.quantize(weight_OI.T, of_weight)
        dx_MI = ctx.scaled_matmul(*factors, out_dtype=x_MI.dtype)
        factors = *ctx.quantize(dy_MO.T, of_x), *ctx.quantize(x_MI.T, of_x)
        dweight_OI = ctx.scaled_matmul(*factors, out_dtype=weight_OI.dtype)
        return dx_MI, dweight_OI, None, None, None
