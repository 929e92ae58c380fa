"""Rows that are heads: in a slice of a projection, heads lie at one distance, tokens at another."""

# Triton takes an annotation on a kernel's argument for its type at run time.
# pyright: reportMissingParameterType=false

import math

import triton
import triton.language as tl
from torch import Tensor

from ..requirements import as_rows, require

MOST_ROWS = 2**31 - 1


def by_token(x: Tensor, name: str) -> Tensor:
    """`x` [..., heads, width] as [tokens, heads, width], without a copy; [..., width] is one head."""
    if x.dim() < 3:
        x = as_rows(x, name).unsqueeze(1)
    *sizes, heads, width = x.shape
    as_rows(x[..., :1, :], name)
    tokens = math.prod(sizes)
    constraint = f"{name} must have at most {MOST_ROWS} rows"
    require(tokens * heads <= MOST_ROWS, constraint, shape=tuple(x.shape))
    return x.view(tokens, heads, width)


def as_heads(**tensors: Tensor) -> list[Tensor]:
    """The same for all of them; where all their rows lie at one distance, each is its own token."""
    views = [by_token(x, name) for name, x in tensors.items()]
    if all(_at_one_distance(x_MHD) for x_MHD in views):
        return [x_MHD.view(-1, 1, x_MHD.shape[2]) for x_MHD in views]
    return views


def _at_one_distance(x_MHD: Tensor) -> bool:
    tokens, heads, _ = x_MHD.shape
    return tokens <= 1 or heads == 1 or x_MHD.stride(0) == heads * x_MHD.stride(1)


@triton.jit
def row_start(row, heads, stride, head_stride):
    """Where a row begins: row = token * heads + head."""
    token = row // heads
    head = row - token * heads
    return token.to(tl.int64) * stride + head.to(tl.int64) * head_stride
