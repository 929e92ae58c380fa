"""FP8, INT8 and FP4 rounding in plain torch, bit-equal to the hardware's, on any device.

A tile of numbers shares one fp32 scale: amax / 448 for FP8 (e4m3), amax / 127 for INT8. FP4 (e2m1)
weights have the scales of the OCP microscaling format (a power of two per 32 numbers) or of NVFP4
(e4m3 per 16 numbers, times one fp32 scale per tensor).
"""

# M rows, N columns of a matrix

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.configs import gpu_arch
from ..search_space.operators import NumberFormat

Recipe = Literal["tensorwise", "rowwise", "blockwise"]
Tile = tuple[int | None, int | None]  # rows, columns; None is all of them

E4M3_MAX, INT8_MAX, E2M1_MAX = 448.0, 127.0, 6.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SMALLEST_AMAX = 1e-12  # so that the scale of a tile of zeros is not 0
ROW: Tile = (1, None)
TILES: dict[Recipe, tuple[Tile, Tile]] = {  # of the activation, of the weight
    "tensorwise": ((None, None), (None, None)),
    "rowwise": (ROW, ROW),
    "blockwise": ((1, 128), (128, 128)),
}


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 matrices; elsewhere their products are simulated."""
    arch = gpu_arch(device)
    return arch is not None and int(arch.removeprefix("sm_")) >= 89


def encode(x: Tensor, dims: tuple[int, ...], to: NumberFormat = "fp8") -> tuple[Tensor, Tensor]:
    """(e4m3 or int8 values, fp32 scales), with one scale over `dims`, which stay as size 1."""
    x = x.float()
    largest = INT8_MAX if to == "int8" else E4M3_MAX
    scale = x.abs().amax(dims, keepdim=True).clamp(min=SMALLEST_AMAX) / largest
    x = (x / scale).clamp(-largest, largest)
    return (x.round().to(torch.int8) if to == "int8" else x.to(torch.float8_e4m3fn)), scale


def decode(values: Tensor, scale: Tensor) -> Tensor:
    """fp32 numbers of encoded values."""
    return values.float() * scale


def quantized_cache(x_BTHD: Tensor, kv: NumberFormat) -> Tensor:
    """Keys or values rounded to the format of the cache, with a straight-through gradient."""
    if kv == "bf16":
        return x_BTHD
    return _StraightThrough.apply(x_BTHD, decode(*encode(x_BTHD, (-1,), kv)).to(x_BTHD.dtype))


def quantized_fp4(weight_OI: Tensor, scales: Literal["mxfp4", "nvfp4"]) -> Tensor:
    """A weight [..., O, I] rounded to FP4, with a straight-through gradient."""
    group = 32 if scales == "mxfp4" else 16
    I = weight_OI.shape[-1]
    groups = F.pad(weight_OI.detach().float(), (0, -I % group)).unflatten(-1, (-1, group))
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_AMAX)
    if scales == "mxfp4":  # floor(log2(amax)) - 2: e2m1's largest exponent is 2
        scale = torch.exp2(amax.log2().floor() - 2)
    else:
        tensor_scale = (amax.amax() / (E2M1_MAX * E4M3_MAX)).clamp(min=SMALLEST_AMAX)
        scale = (amax / E2M1_MAX / tensor_scale).to(torch.float8_e4m3fn).float() * tensor_scale
        scale = scale.clamp(min=SMALLEST_AMAX)
    rounded = _to_e2m1(groups / scale) * scale
    return _StraightThrough.apply(weight_OI, rounded.flatten(-2)[..., :I].to(weight_OI.dtype))


def _to_e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with the sign of x; a tie goes to the even code."""
    grid = x.new_tensor(E2M1)
    size = x.abs().clamp(max=E2M1_MAX)
    above = torch.bucketize(size, grid).clamp(max=len(E2M1) - 1)
    below = (above - 1).clamp(min=0)
    up, down = grid[above] - size, size - grid[below]
    nearest = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return grid[nearest].copysign(x)


class _StraightThrough(torch.autograd.Function):
    """Identity with the value of the second input: a straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def quantized(x_MN: Tensor, tile: Tile) -> Tensor:
    """`x` [..., M, N] rounded to FP8 by tiles, in its dtype, with a straight-through gradient.

    The last tile of a row or column may be short; leading dimensions never share a scale.
    """
    M, N = x_MN.shape[-2:]
    rows, columns = tile[0] or M, tile[1] or N
    padded = F.pad(x_MN.detach(), (0, -N % columns, 0, -M % rows))
    tiles = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    rounded = decode(*encode(tiles, (-3, -1))).to(x_MN.dtype)
    whole = rounded.flatten(-4, -3).flatten(-2, -1)[..., :M, :N]
    return _StraightThrough.apply(x_MN, whole.contiguous())
