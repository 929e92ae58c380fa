"""Checks of a kernel's inputs before anything is launched, and the error that they raise."""

from itertools import pairwise

import torch
from torch import Tensor


class Unsupported(ValueError):
    """A shape, dtype, device or layout that the kernels do not take; backend="torch" takes it."""


def require(condition: bool, constraint: str, **values: object) -> None:
    """Raise Unsupported("`constraint`, got name=value, ...") unless `condition` holds."""
    if not condition:
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        raise Unsupported(f"{constraint}, got {got}")


def as_rows(x: Tensor, name: str) -> Tensor:
    """`x` [..., width] as a view [rows, width]; evenly spaced, not necessarily adjacent.

    So a slice of a wider projection, `h[..., :width]`, is read in place. `name` stands for x in
    the message of Unsupported, raised where rows are not contiguous or not evenly spaced.
    """
    require(x.dim() >= 1, f"{name} must have a last dimension", shape=tuple(x.shape))
    *sizes, width = x.shape
    *strides, step = x.stride()
    layout = {"shape": tuple(x.shape), "strides": x.stride()}
    require(width >= 1, f"the last dimension of {name} must not be empty", **layout)
    require(step == 1 or width == 1, f"the last dimension of {name} must be contiguous", **layout)
    axes = [(n, stride) for n, stride in zip(sizes, strides, strict=True) if n != 1]
    even = all(outer == n * stride for (_, outer), (n, stride) in pairwise(axes))
    require(even or x.numel() == 0, f"the rows of {name} must be evenly spaced", **layout)
    return x.view(-1, width)


def needs_gradient(*inputs: Tensor) -> bool:
    """Whether autograd records, and one of `inputs` requires a gradient."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def require_float(x: Tensor, name: str) -> None:
    """Raise Unsupported unless x is float32, bfloat16 or float16."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    require(x.dtype in floats, f"{name} must be float32, bfloat16 or float16", dtype=x.dtype)


def require_like(other: Tensor, x: Tensor, name: str) -> None:
    """Raise Unsupported unless `other` has the shape, dtype and device of the first input `x`."""
    require(
        (other.shape, other.dtype, other.device) == (x.shape, x.dtype, x.device),
        f"{name} must have the first input's shape, dtype and device {_facts(x)}",
        **{name: _facts(other)},
    )


def _facts(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} {x.device}"
