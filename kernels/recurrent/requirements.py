"""What the recurrent kernels ask of their inputs."""

import torch
from torch import Tensor

from ..requirements import require, require_float


def require_rows(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor, axes: int) -> None:
    """Floats of `shape` beside `like`; a row is what stands behind the first `axes` axes.

    What a row holds lies together, and the rows lie at one distance: `row_stride`.
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
    constraint = f"a row of {name} must lie together, and its rows at one distance"
    require(row.is_contiguous() and even, constraint, shape=shape, strides=x.stride())


def row_stride(x_BT: Tensor) -> int:
    """The distance of a token of x [B, T, ...] from the next, be it of the next sequence."""
    return x_BT.stride(0) if x_BT.shape[1] == 1 else x_BT.stride(1)


def require_whole(
    name: str,
    x: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    like: Tensor,
) -> None:
    """None, or contiguous, of one of `dtypes`, and of `shape`, beside `like`."""
    if x is None:
        return
    require(
        x.shape == shape and x.dtype in dtypes and x.device == like.device and x.is_contiguous(),
        f"{name} must be contiguous, {' or '.join(map(str, dtypes))}, of shape {shape}, on {like.device}",
        shape=tuple(x.shape),
        strides=x.stride(),
        dtype=x.dtype,
        device=x.device,
    )


def require_short(name: str, x: Tensor) -> None:
    """float32 or bfloat16: states and weights of a chunk are beyond what float16 holds."""
    dtypes = (torch.float32, torch.bfloat16)
    require(x.dtype in dtypes, f"{name} must be float32 or bfloat16", dtype=x.dtype)
