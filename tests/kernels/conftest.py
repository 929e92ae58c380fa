"""The contract of every operator: outputs and all gradients against the reference in float64."""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor


def error(x: Tensor, truth: Tensor) -> float:
    """Relative to the truth; what should be zero must be."""
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
    """The kernel behind a family's door against the family's reference.

    float32 errs by 1e-5 at most; bfloat16 by twice what the reference itself errs in bfloat16.
    """
    reference, op = (import_module(f"archfront.kernels.{family}.{m}") for m in ("reference", "op"))
    meaning = partial(getattr(reference, name), **settings)
    kernel = partial(getattr(op, name), backend="triton", **settings)
    result = meaning(*inputs.values())
    outputs = result if isinstance(result, tuple) else (result,)
    cotangents = [torch.randn_like(y) for y in outputs]

    truth = outputs_and_gradients(meaning, {k: x.double() for k, x in inputs.items()}, cotangents)
    plain = outputs_and_gradients(meaning, inputs, cotangents)
    ours = outputs_and_gradients(kernel, inputs, cotangents)
    for quantity, y in ours.items():
        assert (y.shape, y.dtype) == (plain[quantity].shape, plain[quantity].dtype), quantity
        half = y.dtype != torch.float32
        bound = min(1e-2, 2 * error(plain[quantity], truth[quantity])) if half else 1e-5
        assert error(y, truth[quantity]) <= bound, quantity


@pytest.fixture
def assert_matches_reference() -> Callable[..., None]:
    """assert_matches_reference(family, name, inputs, **settings): the door's kernel does what the reference means."""
    torch.manual_seed(0)
    return check_against_reference


@pytest.fixture
def poison():
    """Every fresh tensor holds NaN, so that an element no kernel has written cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
