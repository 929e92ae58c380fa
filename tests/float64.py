"""Runs code that casts to float32 in float64 instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-12  # of the largest value


class _Float64Mode(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = Tensor.double if func is Tensor.float else func
        return func(*map(widened, args), **{name: widened(v) for name, v in (kwargs or {}).items()})


@contextmanager
def in_float64() -> Iterator[None]:
    """Replace float32 by float64, without gradients and with a separate random state."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64Mode(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(default)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Assert equality up to the last bits of float64."""
    assert theirs.dtype == torch.float64
    error = (ours - theirs).abs().amax() / theirs.abs().amax()
    assert error.item() < TOLERANCE


def draw(weight: Tensor) -> None:
    """Draw new values in place: matrices with outputs of size one, vectors plus noise."""
    if weight.ndim > 1:
        weight.normal_(std=weight.shape[-1] ** -0.5)
    else:
        weight += 0.3 * torch.randn_like(weight)
