"""The recurrences through their public API: torch implementation, steps, input checks."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.configs import ARCHS
from archfront.kernels.recurrent import configs, op, reference
from archfront.kernels.requirements import Unsupported

# 150 tokens are three chunks, the last one partial; segments end within a chunk and at its end
B, T, G, H, K, V = 2, 150, 2, 4, 6, 5
SEGMENT_IDS = torch.tensor(
    [[0] * 64 + [1] + [4] * 85, [0] * 10 + [1] * 118 + [2] * 22], dtype=torch.int32
)
# (decay: none, per head, per token and head, per channel too; delta rule)
VARIANTS = {
    "linear attention": (None, False),
    "deltanet": (None, True),
    "retention": ("head", False),
    "mamba-2": ("token", False),
    "gated deltanet": ("token", True),
    "gla": ("channel", False),
    "kda": ("channel", True),
}
RECURRENCES = [*VARIANTS, "rwkv-7", "channels", "mamba-1"]


def wide(*shape):
    return torch.randn(shape, dtype=torch.float64)


def keys(*shape):
    return F.normalize(wide(*shape, K), dim=-1)


def decay_of(variant, tokens):
    shapes = {"head": (H,), "token": (B, tokens, H), "channel": (B, tokens, H, K)}
    decay, _ = VARIANTS[variant]
    return None if decay is None else -wide(*shapes[decay]).abs()


def given(variant, tokens=T):
    """(name of its function in op.py, inputs) of a recurrence."""
    if variant == "rwkv-7":
        removed, share = keys(B, tokens, H), torch.rand(B, tokens, H, K, dtype=torch.float64)
        r, w, k = wide(3, B, tokens, H, K)
        v = wide(B, tokens, H, V)
        return "rwkv7_recurrence", (r, -w.abs(), k, v, -removed, removed * share, wide(B, H, K, V))
    if variant == "channels":
        x, decay = wide(2, B, tokens, 7)
        return "channel_scan", (x, -decay.abs(), wide(B, 7))
    if variant == "mamba-1":
        (x, dt), A = wide(2, B, tokens, 7), -wide(7, 3).abs()
        of_states = wide(B, tokens, 3), wide(B, tokens, 3)
        return "selective_scan", (x, dt.abs(), A, *of_states, wide(7), wide(B, 7, 3))
    beta = 2 * torch.rand(B, tokens, H, dtype=torch.float64) if VARIANTS[variant][1] else None
    q, k, v = wide(B, tokens, G, K), keys(B, tokens, G), wide(B, tokens, H, V)
    return "linear_recurrence", (q, k, v, decay_of(variant, tokens), beta, wide(B, H, K, V))


def with_gradients(function, inputs, **settings):
    """Both outputs, and gradients for fixed cotangents."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    outputs = function(*leaves, **settings)
    cotangents = [torch.cos(torch.arange(y.numel()).view(y.shape) / 7).to(y) for y in outputs]
    asked = [x for x in leaves if x is not None]
    return *outputs, *torch.autograd.grad(outputs, asked, cotangents)


def assert_matches_reference(variant, tokens=T, segment_ids=None, **settings):
    name, inputs = given(variant, tokens)
    ours = with_gradients(getattr(op, name), inputs, segment_ids=segment_ids, **settings)
    expected = with_gradients(getattr(reference, name), inputs, segment_ids=segment_ids)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("segment_ids", [None, SEGMENT_IDS])
@pytest.mark.parametrize("variant", RECURRENCES)
def test_the_torch_implementation_matches_the_reference(variant, segment_ids):
    assert_matches_reference(variant, segment_ids=segment_ids)


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize("variant", RECURRENCES)
def test_a_short_sequence_matches_the_reference(variant, tokens):
    assert_matches_reference(variant, tokens)


@pytest.mark.parametrize("chunk", [16, 32])
@pytest.mark.parametrize("variant", ["gated deltanet", "kda", "rwkv-7"])
def test_the_chunk_size_does_not_change_the_result(variant, chunk):
    assert_matches_reference(variant, tokens=70, chunk=chunk)


@pytest.mark.parametrize("variant", RECURRENCES)
def test_a_state_that_is_left_out_is_zero(variant):
    name, (*inputs, state) = given(variant, 20)
    none = getattr(op, name)(*inputs)
    torch.testing.assert_close(none, getattr(op, name)(*inputs, torch.zeros_like(state)))


@pytest.mark.parametrize("variant", RECURRENCES)
def test_two_halves_are_the_whole(variant):
    name, (*inputs, state) = given(variant, 70)
    run = getattr(op, name)
    whole, last = run(*inputs, state)
    halves = []
    for part in (slice(None, 33), slice(33, None)):
        over_time = [x[:, part] if x is not None and x.shape[:2] == (B, 70) else x for x in inputs]
        o, state = run(*over_time, state)
        halves.append(o)
    torch.testing.assert_close((torch.cat(halves, 1), state), (whole, last))


@pytest.mark.parametrize("variant", [*VARIANTS, "rwkv-7"])
def test_steps_equal_the_whole_sequence(variant):
    name, (*inputs, state) = given(variant, 9)
    whole, last = getattr(op, name)(*inputs, state)
    step = op.rwkv7_recurrence_step if variant == "rwkv-7" else op.linear_recurrence_step
    reads = []
    for t in range(9):
        token = [x[:, t] if x is not None and x.shape[:2] == (B, 9) else x for x in inputs]
        reads.append(step(*token, state))
    torch.testing.assert_close((torch.stack(reads, 1), state), (whole, last))


@pytest.mark.parametrize("variant", ["mamba-2", "gated deltanet", "gla", "kda"])
def test_extreme_decays_cost_no_precision(variant):
    _, (q, k, v, decay, beta, state) = given(variant)
    decay[:, ::3], decay[:, 1::3], decay[:, 50] = 0, -1e4, -torch.inf
    inputs = (q, k, v, decay, beta, state)
    short = [None if x is None else x.float() for x in inputs]
    for ours, truth in zip(
        op.linear_recurrence(*short), reference.linear_recurrence(*inputs), strict=True
    ):
        assert (ours - truth).norm() < 1e-4 * truth.norm()


@pytest.mark.parametrize("variant", ["gla", "kda", "rwkv-7"])
def test_the_strongest_decay_of_a_channel_costs_no_precision(variant):
    name, inputs = given(variant, 70)
    decay = inputs[1 if variant == "rwkv-7" else 3]
    decay[..., ::2] = configs.MIN_LOG_DECAY_PER_CHANNEL
    short = [None if x is None else x.float() for x in inputs]
    truth = getattr(reference, name)(*inputs)
    for ours, exact in zip(getattr(op, name)(*short), truth, strict=True):
        assert (ours - exact).norm() < 1e-5 * exact.norm()


def test_bfloat16_keeps_its_dtype_and_a_wide_state():
    for variant in ("gated deltanet", "kda"):
        _, inputs = given(variant)
        short = [None if x is None else x.to(torch.bfloat16) for x in inputs]
        o, state = op.linear_recurrence(*short[:3], *inputs[3:5])
        assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        expected, _ = reference.linear_recurrence(*(x.double() for x in short[:3]), *inputs[3:5])
        assert (o - expected).norm() < 4e-3 * expected.norm()


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("backend", ["torch", "triton", None])
def test_a_meta_tensor_gives_shapes(backend):
    q, k = meta(2, 9, 2, 16).requires_grad_(), meta(2, 9, 2, 16)
    v, decay, beta = meta(2, 9, 4, 32), meta(2, 9, 4), meta(2, 9, 4)
    o, state = op.linear_recurrence(q, k, v, decay, beta, backend=backend)
    (o.sum() + state.sum()).backward()
    assert (o.shape, state.shape, q.grad.shape) == ((2, 9, 4, 32), (2, 4, 16, 32), q.shape)
    with torch.no_grad():
        token = [x[:, 0] for x in (q, k, v, decay, beta)]
        assert op.linear_recurrence_step(*token, state, backend=backend).shape == (2, 4, 32)
    y, last = op.channel_scan(meta(2, 9, 5), meta(2, 9, 5), backend=backend)
    assert (y.shape, last.shape) == ((2, 9, 5), (2, 5))


def sequence(q=(2, 9, 2, 16), v=(2, 9, 4, 32), dtype=torch.float32):
    return meta(*q, dtype=dtype), meta(*q, dtype=dtype), meta(*v, dtype=dtype)


UNSUPPORTED = {
    "needs a CUDA tensor.*device=cpu": lambda: (torch.ones(2, 9, 4, 16),) * 3,
    "key heads must divide the value heads, got G=3, H=4": lambda: sequence(q=(2, 9, 3, 16)),
    "keys must be at most 256 wide, got K=300": lambda: sequence(q=(2, 9, 2, 300)),
    "v must be float32 or bfloat16, got dtype=torch.float16": lambda: sequence(dtype=torch.float16),
    "k must have the dtype of v": lambda: (
        sequence()[0],
        meta(2, 9, 2, 16, dtype=torch.bfloat16),
        sequence()[2],
    ),
    r"v must be of shape \(2, 0, 4, 32\), not empty": lambda: sequence(
        (2, 0, 2, 16), (2, 0, 4, 32)
    ),
    "a row of v must be contiguous": lambda: (*sequence()[:2], meta(2, 9, 32, 4).mT),
    "decay must have a shape of": lambda: (*sequence(), meta(2, 9, 3)),
    r"beta must be of shape \(2, 9, 4\)": lambda: (*sequence(), None, meta(2, 9, 2)),
    r"state must be contiguous, torch.float32": lambda: (
        *sequence(),
        None,
        None,
        meta(2, 4, 16, 16),
    ),
}


@pytest.mark.parametrize("constraint", UNSUPPORTED)
def test_a_recurrence_rejects_unsupported_inputs(constraint):
    with pytest.raises(Unsupported, match=constraint):
        op.linear_recurrence(*UNSUPPORTED[constraint](), backend="triton")


def test_a_chunk_is_one_of_three():
    with pytest.raises(Unsupported, match=r"chunk must be one of \(16, 32, 64\), got chunk=48"):
        op.linear_recurrence(*sequence(), chunk=48, backend="triton")


@pytest.mark.parametrize("arch", ARCHS)
def test_wide_keys_need_warp_groups_and_bfloat16(arch):
    for dtype in (torch.bfloat16, torch.float32):
        rule = ("fwd_state", "head", dtype, 256, 128)
        if dtype == torch.bfloat16 and arch in configs.WITH_WARP_GROUPS:
            assert configs.config_for(arch, *rule).tiles["BK"] == 256
            continue
        with pytest.raises(Unsupported, match=f"at most 128 wide on {arch} .* got K=256"):
            configs.config_for(arch, *rule)


def test_the_public_api_does_not_import_triton():
    code = (
        "import sys; from archfront.kernels.recurrent import op; sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
