"""Input checks of the recurrent kernels."""

import torch
from torch import Tensor

from ..requirements import require, require_float


def require_rows(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor, axes: int) -> None:
    """Raise Unsupported unless x is floating-point, of `shape`, not empty, on the device of `like`.

    A row is what follows the first `axes` axes: it must be contiguous, and rows evenly spaced, at
    `row_stride`.
    """
    require_float(x, name)
    require(
        x.shape == shape and x.numel() > 0 and x.device == like.device,
        f"{name} must be of shape {shape}, not empty, on {like.device}",
        shape=tuple(x.shape),
        device=x.device,
    )
    row = x[(0,) * axes]
    even = axes < 2 or 1 in shape[:2] or x.stride(0) == shape[1] * x.stride(1)
    constraint = f"a row of {name} must be contiguous, and its rows evenly spaced"
    require(row.is_contiguous() and even, constraint, shape=shape, strides=x.stride())


def row_stride(x_BT: Tensor) -> int:
    """Elements from a token of x [B, T, ...] to the next one, or to the next row's first."""
    return x_BT.stride(0) if x_BT.shape[1] == 1 else x_BT.stride(1)


def require_whole(
    name: str,
    x: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    like: Tensor,
) -> None:
    """Raise Unsupported unless x is None, or contiguous, of `shape`, a dtype and like's device."""
    if x is None:
        return
    require(
        x.shape == shape and x.dtype in dtypes and x.device == like.device and x.is_contiguous(),
        f"{name} must be contiguous, {' or '.join(map(str, dtypes))}, of shape {shape}, "
        f"on {like.device}",
        shape=tuple(x.shape),
        strides=x.stride(),
        dtype=x.dtype,
        device=x.device,
    )


def require_short(name: str, x: Tensor) -> None:
    """Raise Unsupported unless x is float32 or bfloat16: chunk states exceed float16."""
    dtypes = (torch.float32, torch.bfloat16)
    require(x.dtype in dtypes, f"{name} must be float32 or bfloat16", dtype=x.dtype)
