"""Row operators through their public API: torch implementation, input checks, imports."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from archfront.kernels.requirements import Unsupported
from archfront.kernels.rows import loss, op, reference

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


def test_the_norms_agree_with_torchs_own():
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((7, 60), 60, 60))
    ours = reference.rms_norm(x, weight, EPS), reference.layer_norm(x, weight, bias, EPS)
    torchs = F.rms_norm(x, (60,), weight, EPS), F.layer_norm(x, (60,), weight, bias, EPS)
    torch.testing.assert_close(ours, torchs)
    torch.testing.assert_close(op.layer_norm(x, weight, bias, EPS), torchs[1])
    torch.testing.assert_close(reference.l2_norm(x, 0.0), F.normalize(x))


def test_the_gated_norm_is_a_norm_and_a_gate():
    x, gate = torch.randn(2, 7, 60, dtype=torch.float64)
    weight = torch.randn(60, dtype=torch.float64)
    first = reference.gated_rms_norm(x, gate, weight, EPS, gate_first=True, groups=3)
    parts = (x * F.silu(gate)).view(7, 3, 20), (20,), None, EPS
    torch.testing.assert_close(first, F.rms_norm(*parts).view(7, 60) * weight)
    last = reference.gated_rms_norm(x, gate, weight, EPS, activation="sigmoid", gate_first=False)
    torch.testing.assert_close(last, F.rms_norm(x, (60,), weight, EPS) * gate.sigmoid())


def test_rope_turns_by_the_difference_of_positions():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    angle_TP = torch.arange(9.0, dtype=torch.float64)[:, None] * torch.rand(6, dtype=torch.float64)
    for settings in ({}, {"interleaved": True}, {"last": True}):
        q_at, k_at = (
            reference.rope(
                x.expand(1, 9, 1, 16), angle_TP.cos(), angle_TP.sin(), rotated=12, **settings
            )
            for x in (q, k)
        )
        scores = q_at[0, :, 0] @ k_at[0, :, 0].T
        torch.testing.assert_close(scores.diagonal(2), scores[0, 2].expand(7))


def test_the_convolution_agrees_with_torchs_own():
    x, weight = torch.randn(2, 17, 60, dtype=torch.float64), torch.randn(60, 4, dtype=torch.float64)
    torchs = F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], groups=60).mT
    torch.testing.assert_close(reference.short_conv(x, weight, activation=None), torchs)


def test_a_tail_continues_a_sequence_and_a_segment_starts_anew():
    x, weight = torch.randn(2, 17, 60, dtype=torch.float64), torch.randn(60, 4, dtype=torch.float64)
    whole = op.short_conv(x, weight, activation="silu")
    rest = op.short_conv(x[:, 5:], weight, activation="silu", tail_BWN=x[:, 2:5])
    torch.testing.assert_close(rest, whole[:, 5:])
    segment_ids = torch.tensor([[0] * 5 + [1] * 12] * 2, dtype=torch.int32)
    packed = op.short_conv(x, weight, activation="silu", segment_ids=segment_ids)
    alone = [op.short_conv(part, weight, activation="silu") for part in (x[:, :5], x[:, 5:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1))


def test_token_by_token_equals_all_at_once():
    x, weight = torch.randn(2, 17, 60, dtype=torch.float64), torch.randn(60, 4, dtype=torch.float64)
    tail = torch.zeros(2, 3, 60, dtype=torch.float64)
    steps = [op.short_conv_step(x[:, t], tail, weight, activation="silu") for t in range(17)]
    torch.testing.assert_close(torch.stack(steps, 1), op.short_conv(x, weight, activation="silu"))


@pytest.mark.parametrize("settings", [{}, {"softcap": 3.0}, {"scale": 0.5, "z_loss": 0.1}])
def test_the_chunked_loss_is_the_reference_in_every_gradient(settings):
    h = torch.randn(2, 400, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(60, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(60, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, 60, (2, 400))
    target[target < 0] = -100
    values = [
        f(h, weight, target, bias=bias, **settings)
        for f in (op.linear_cross_entropy, reference.linear_cross_entropy)
    ]
    ours, plain = (torch.autograd.grad(3 * value, (h, weight, bias)) for value in values)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(ours, plain)


def test_the_reference_loss_agrees_with_torchs_own():
    h, weight = torch.randn(7, 16, dtype=torch.float64), torch.randn(60, 16, dtype=torch.float64)
    target = torch.tensor([3, -100, 59, 0, -100, 1, 2])
    ours = reference.linear_cross_entropy(h, weight, target)
    torch.testing.assert_close(ours, F.cross_entropy(h @ weight.T, target))


def test_the_loss_holds_a_tenth_of_the_plain_implementations_memory():
    h, weight = torch.randn(8192, 16), torch.randn(1024, 16)
    target = torch.randint(1024, (8192,))
    with LargestTensor() as chunked:
        loss.loss_and_gradients(h, weight, target, None, 1.0, None, 0.0, True, "torch")
    with LargestTensor() as plain:
        h.requires_grad_()
        reference.linear_cross_entropy(h, weight, target).backward()
    assert plain.bytes == 8192 * 1024 * 4
    assert chunked.bytes <= plain.bytes / 10


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that an operation returned within it, backward included."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for y in torch.utils._pytree.tree_leaves(result):
            if isinstance(y, torch.Tensor):
                self.bytes = max(self.bytes, y.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("backend", ["torch", "triton", None])
def test_a_meta_tensor_gives_shapes(backend):
    x, weight = meta(2, 3, 60, dtype=torch.bfloat16), meta(60).requires_grad_()
    normed, summed = op.add_rms_norm(x.requires_grad_(), x, weight, EPS, backend=backend)
    y = op.swiglu(normed, summed, backend=backend)
    y = op.gated_rms_norm(y, x, weight, EPS, gate_first=True, groups=2, backend=backend)
    y = op.short_conv(y, meta(60, 4), weight, activation="silu", backend=backend)
    heads = op.l2_norm(y.unflatten(-1, (3, 20)), EPS, backend=backend)
    y = op.rope(heads, meta(3, 5), meta(3, 5), rotated=10, backend=backend).flatten(-2)
    y = op.relu2(y, backend=backend)
    target = torch.empty(2, 3, dtype=torch.int64, device="meta")
    head = meta(100, 60, dtype=torch.bfloat16)
    value = op.linear_cross_entropy(y, head, target, backend=backend)
    value.backward()
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert (value.shape, value.dtype) == ((), torch.float32)
    assert (x.grad.shape, weight.grad.dtype) == (x.shape, torch.float32)


UNSUPPORTED = {
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
    "rows of x must be evenly spaced": lambda: (
        meta(4, 3, 2, 60).transpose(0, 1),
        meta(60),
    ),
    "last dimension of x must not be empty": lambda: (meta(2, 0), meta(0)),
    "x must have a last dimension": lambda: (meta(), meta(60)),
}


@pytest.mark.parametrize("constraint", UNSUPPORTED)
def test_the_norm_rejects_unsupported_inputs(constraint):
    with pytest.raises(Unsupported, match=constraint):
        op.rms_norm(*UNSUPPORTED[constraint](), EPS, backend="triton")


X = meta(2, 5, 60)
OTHERS_UNSUPPORTED = {
    "residual must have the first input's shape": lambda: op.add_rms_norm(
        X, X.half(), meta(60), EPS, backend="triton"
    ),
    "up must have the first input's shape": lambda: op.swiglu(X, X.half(), backend="triton"),
    "gate must have the first input's shape": lambda: op.gated_rms_norm(
        X, X[:1], meta(60), EPS, gate_first=True, backend="triton"
    ),
    "groups must divide the last dimension, got groups=7, width=60": lambda: op.gated_rms_norm(
        X, X, meta(60), EPS, gate_first=True, groups=7, backend="triton"
    ),
    "whole group: width / groups <= 8192": lambda: op.gated_rms_norm(
        meta(2, 16_386), meta(2, 16_386), meta(16_386), EPS, gate_first=True, backend="triton"
    ),
    "whole row: width <= 1024, got width=1025": lambda: op.l2_norm(
        meta(2, 1025), EPS, backend="triton"
    ),
    "activation must be one of silu.*got activation=relu": lambda: op.glu(
        X, X, "relu", backend="triton"
    ),
    "rotated must be even, > 0 and <= 60, got rotated=62": lambda: op.rope(
        X[None], meta(5, 31), meta(5, 31), rotated=62, backend="triton"
    ),
    r"cos must be contiguous, float32, of shape \(2, 4\) or": lambda: op.rope(
        X[None], meta(2, 5), meta(2, 5), rotated=8, backend="triton"
    ),
    "tables of rope have no gradient": lambda: op.rope(
        X[None], meta(2, 4).requires_grad_(), meta(2, 4), rotated=8, backend="triton"
    ),
    r"weight must be \[60 channels, 2 to 8 taps\]": lambda: op.short_conv(
        X, meta(60, 9), activation="silu", backend="triton"
    ),
    r"tail must be contiguous, of shape \(2, 3, 60\)": lambda: op.short_conv(
        X, meta(60, 4), activation="silu", tail_BWN=meta(2, 4, 60), backend="triton"
    ),
    "the tail has no gradient": lambda: op.short_conv(
        X, meta(60, 4), activation=None, tail_BWN=meta(2, 3, 60).requires_grad_(), backend="triton"
    ),
    r"segment_ids must be contiguous, int32, of shape \(2, 5\)": lambda: op.short_conv(
        X, meta(60, 4), activation="silu", segment_ids=meta(2, 5), backend="triton"
    ),
    "a step has no gradient": lambda: op.short_conv_step(
        X[0], meta(5, 3, 60), meta(60, 4).requires_grad_(), activation="silu", backend="triton"
    ),
    r"weight must be \[vocabulary, 60\], torch.float32": lambda: op.linear_cross_entropy(
        X, meta(100, 60, dtype=torch.bfloat16), meta(2, 5), backend="triton"
    ),
    r"target must be of shape \(2, 5\), int64": lambda: op.linear_cross_entropy(
        X, meta(100, 60), meta(2, 5), backend="triton"
    ),
}


@pytest.mark.parametrize("constraint", OTHERS_UNSUPPORTED)
def test_each_operator_rejects_unsupported_inputs(constraint):
    with pytest.raises(Unsupported, match=constraint):
        OTHERS_UNSUPPORTED[constraint]()


def test_the_public_api_does_not_import_triton():
    code = "import sys; from archfront.kernels.rows import op; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
