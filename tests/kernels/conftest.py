"""Comparison of operators with their reference in float64: outputs and all gradients."""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor


def error(x: Tensor, truth: Tensor) -> float:
    """The error relative to `truth`; where that is zero, any error is huge."""
    return ((x.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()


def outputs_and_gradients(
    operator: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    cotangents: list[Tensor],
) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    result = operator(*leaves.values())
    outputs = result if isinstance(result, tuple) else (result,)
    cotangents = [c.to(y.dtype) for c, y in zip(cotangents, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    named = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def check_against_reference(
    family: str, name: str, inputs: dict[str, Tensor], **settings: float | bool
) -> None:
    """A kernel, through the public API of its family, against the reference of its family.

    The relative error is at most 1e-5 in float32, and twice the reference's own in 16 bits.
    """
    reference, op = (import_module(f"archfront.kernels.{family}.{m}") for m in ("reference", "op"))
    definition = partial(getattr(reference, name), **settings)
    kernel = partial(getattr(op, name), backend="triton", **settings)
    result = definition(*inputs.values())
    outputs = result if isinstance(result, tuple) else (result,)
    cotangents = [torch.randn_like(y) for y in outputs]

    truth = outputs_and_gradients(
        definition, {k: x.double() for k, x in inputs.items()}, cotangents
    )
    plain = outputs_and_gradients(definition, inputs, cotangents)
    ours = outputs_and_gradients(kernel, inputs, cotangents)
    for quantity, y in ours.items():
        assert (y.shape, y.dtype) == (plain[quantity].shape, plain[quantity].dtype), quantity
        half = y.dtype != torch.float32
        bound = min(1e-2, 2 * error(plain[quantity], truth[quantity])) if half else 1e-5
        assert error(y, truth[quantity]) <= bound, quantity


@pytest.fixture
def assert_matches_reference() -> Callable[..., None]:
    """assert_matches_reference(family, name, inputs, **settings): `check_against_reference`."""
    torch.manual_seed(0)
    return check_against_reference


@pytest.fixture
def nan_filled_empty():
    """torch.empty fills with NaN, so that an element that no kernel wrote fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
