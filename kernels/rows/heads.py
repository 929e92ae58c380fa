"""Strides of rows that are heads in a slice of a wider projection: per head and per token."""

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import math

import triton
import triton.language as tl
from torch import Tensor

from ..requirements import as_rows, require

MOST_ROWS = 2**31 - 1


def by_token(x: Tensor, name: str) -> Tensor:
    """`x` [..., heads, width] as a view [tokens, heads, width]; [..., width] counts as one head."""
    if x.dim() < 3:
        x = as_rows(x, name).unsqueeze(1)
    *sizes, heads, width = x.shape
    as_rows(x[..., :1, :], name)
    tokens = math.prod(sizes)
    constraint = f"{name} must have at most {MOST_ROWS} rows"
    require(tokens * heads <= MOST_ROWS, constraint, shape=tuple(x.shape))
    return x.view(tokens, heads, width)


def as_heads(**tensors: Tensor) -> list[Tensor]:
    """`by_token` of several tensors; if all their rows are evenly spaced, every row is a token."""
    views = [by_token(x, name) for name, x in tensors.items()]
    if all(_at_one_distance(x_MHD) for x_MHD in views):
        return [x_MHD.view(-1, 1, x_MHD.shape[2]) for x_MHD in views]
    return views


def _at_one_distance(x_MHD: Tensor) -> bool:
    tokens, heads, _ = x_MHD.shape
    return tokens <= 1 or heads == 1 or x_MHD.stride(0) == heads * x_MHD.stride(1)


@triton.jit
def row_start(row, heads, stride, head_stride):
    """Offset of a row, row = token * heads + head."""
    token = row // heads
    head = row - token * heads
    return token.to(tl.int64) * stride + head.to(tl.int64) * head_stride
