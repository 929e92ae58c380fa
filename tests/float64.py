"""Public code that computes in float32 whatever it is given, made to compute in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-12  # of the largest value


class _Wide(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = Tensor.double if func is Tensor.float else func
        return func(*map(wide, args), **{name: wide(v) for name, v in (kwargs or {}).items()})


@contextmanager
def in_float64() -> Iterator[None]:
    """Whoever asks for float32 gets float64; no gradients, and a random state of its own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for the last bits of float64."""
    assert theirs.dtype == torch.float64
    error = (ours - theirs).abs().amax() / theirs.abs().amax()
    assert error.item() < TOLERANCE


def draw(weight: Tensor) -> None:
    """New values under which everything matters: of size one behind a matrix, no vector even."""
    if weight.ndim > 1:
        weight.normal_(std=weight.shape[-1] ** -0.5)
    else:
        weight += 0.3 * torch.randn_like(weight)
