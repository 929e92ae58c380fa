"""FP8 (e4m3) as plain arithmetic: values rounded as the hardware rounds them, on any device.

A tile of numbers shares one fp32 scale, amax / 448, so that its largest value meets e4m3's largest.
"""

# M rows, N columns of a matrix

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Recipe = Literal["tensorwise", "rowwise", "blockwise"]
Tile = tuple[int | None, int | None]  # rows, columns; None is all there are

E4M3_MAX = 448.0
SMALLEST_AMAX = 1e-12  # a tile of zeros needs a scale too
ROW: Tile = (1, None)
TILES: dict[Recipe, tuple[Tile, Tile]] = {  # of the activation, of the weight
    "tensorwise": ((None, None), (None, None)),
    "rowwise": (ROW, ROW),
    "blockwise": ((1, 128), (128, 128)),
}


def encode(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(e4m3 values, fp32 scales): one scale for all that lies along `dims`."""
    x = x.float()
    scale = x.abs().amax(dims, keepdim=True).clamp(min=SMALLEST_AMAX) / E4M3_MAX
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def decode(values: Tensor, scale: Tensor) -> Tensor:
    return values.float() * scale


def quantised(x_MN: Tensor, tile: Tile) -> Tensor:
    """`x` [..., M, N] as FP8 keeps it, in its own dtype; the gradient passes straight through.

    The last tile of a row or column may be short; leading dimensions never share a scale.
    """
    return _Quantised.apply(x_MN, tile)


class _Quantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MN: Tensor, tile: Tile) -> Tensor:
        M, N = x_MN.shape[-2:]
        rows, columns = tile[0] or M, tile[1] or N
        padded = F.pad(x_MN, (0, -N % columns, 0, -M % rows))
        tiles = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        rounded = decode(*encode(tiles, (-3, -1))).to(x_MN.dtype)
        return rounded.flatten(-4, -3).flatten(-2, -1)[..., :M, :N]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
