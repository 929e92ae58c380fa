"""The door: which backend runs, what it refuses, and what it costs to import."""

import subprocess
import sys

import pytest
import torch

from archfront.kernels.laws import Unsupported
from archfront.kernels.rows import op, reference

EPS = 1e-6


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_the_torch_backend_is_the_reference_for_any_input():
    x, residual = torch.randn(2, 60, 3, 7, dtype=torch.float64).transpose(1, 3)
    weight = torch.randn(60, dtype=torch.float64)
    for backend in ("torch", None):
        y = op.rms_norm(x, weight, EPS, zero_centered=True, backend=backend)
        normed, summed = op.add_rms_norm(x, residual, weight, EPS, backend=backend)
        assert torch.equal(y, reference.rms_norm(x, weight, EPS, zero_centered=True))
        assert torch.equal(normed, reference.rms_norm(x + residual, weight, EPS))
        assert torch.equal(summed, x + residual)
        assert torch.equal(op.swiglu(x, residual, backend=backend), reference.swiglu(x, residual))


def test_the_reference_agrees_with_torchs_own_operators():
    x, up = torch.randn(2, 7, 60, dtype=torch.float64)
    weight = torch.randn(60, dtype=torch.float64)
    ours = reference.rms_norm(x, weight, EPS), reference.swiglu(x, up)
    torchs = torch.nn.functional.rms_norm(x, (60,), weight, EPS), torch.nn.functional.silu(x) * up
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("backend", ["torch", "triton", None])
def test_a_meta_tensor_asks_for_shapes(backend):
    x, weight = meta(2, 3, 60, dtype=torch.bfloat16), meta(60).requires_grad_()
    normed, summed = op.add_rms_norm(x.requires_grad_(), x, weight, EPS, backend=backend)
    y = op.swiglu(normed, summed, backend=backend)
    y.sum().backward()
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert (x.grad.shape, weight.grad.dtype) == (x.shape, torch.float32)


REFUSED = {
    "needs a CUDA tensor.*device=cpu": lambda: (torch.empty(2, 60), torch.empty(60)),
    "x must be float32, bfloat16 or float16.*float64": lambda: (
        meta(2, 60, dtype=torch.float64),
        meta(60),
    ),
    "weight must be float32, bfloat16 or float16.*int64": lambda: (
        meta(2, 60),
        meta(60, dtype=torch.int64),
    ),
    "whole row: width <= 16384, got width=16385": lambda: (meta(2, 16_385), meta(16_385)),
    "whole row: width <= 8192, got width=8193, gradient=True": lambda: (
        meta(2, 8193),
        meta(8193).requires_grad_(),
    ),
    r"weight must be contiguous, of shape \(60,\).*shape=\(61,\)": lambda: (meta(2, 60), meta(61)),
    r"last dimension of x must be contiguous.*strides=\(1, 2\)": lambda: (
        meta(60, 2).T,
        meta(60),
    ),
    "rows of x must lie at one distance": lambda: (meta(3, 2, 60).transpose(0, 1), meta(60)),
    "last dimension of x must not be empty": lambda: (meta(2, 0), meta(0)),
    "x must have a last dimension": lambda: (meta(), meta(60)),
}


@pytest.mark.parametrize("law", REFUSED)
def test_the_norm_refuses_by_its_law(law):
    with pytest.raises(Unsupported, match=law):
        op.rms_norm(*REFUSED[law](), EPS, backend="triton")


def test_a_second_input_of_another_kind_is_refused():
    x, half = meta(2, 60), meta(2, 60, dtype=torch.bfloat16)
    with pytest.raises(Unsupported, match="residual must have the first input's shape"):
        op.add_rms_norm(x, half, meta(60), EPS, backend="triton")
    with pytest.raises(Unsupported, match="up must have the first input's shape"):
        op.swiglu(x, half, backend="triton")


def test_the_door_does_not_import_triton():
    code = "import sys; from archfront.kernels.rows import op; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
