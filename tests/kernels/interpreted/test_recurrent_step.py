"""One-token steps of the recurrences."""

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.recurrent import one_token, op, reference

BF16 = torch.bfloat16
B, G, H, K, V = 3, 2, 4, 20, 36
DECAYS = {"none": None, "head": (H,), "token": (B, H), "channel": (B, H, K)}


def token(dtype=torch.float32):
    q, k = torch.randn(2, B, G, K).to(dtype)
    return q, F.normalize(k, dim=-1), torch.randn(B, H, V).to(dtype)


def token_rwkv7(dtype=torch.float32):
    r, w, k, a, b = torch.randn(5, B, H, K).to(dtype)
    return r, -w.abs(), k, torch.randn(B, H, V).to(dtype), a, b


def both(name, inputs, state, **settings):
    """(o, state) of the kernel, and of the reference in float64."""
    truth = [None if x is None else x.double() for x in inputs]
    ours, theirs = state.clone(), state.double()
    o = getattr(op, name)(*inputs, ours, backend="triton", **settings)
    expected = getattr(reference, name)(*truth, theirs, **settings)
    return (o, ours), (expected, theirs)


def assert_close(found, expected):
    for y, truth in zip(found, expected, strict=True):
        bound = 1e-6 if y.dtype == torch.float32 else 4e-3
        assert (y.double() - truth).norm() < bound * truth.norm()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_step_matches_its_reference(decay, delta, dtype):
    torch.manual_seed(0)
    shape = DECAYS[decay]
    gate = None if shape is None else -torch.rand(shape)
    inputs = (*token(dtype), gate, 2 * torch.rand(B, H) if delta else None)
    assert_close(*both("linear_recurrence_step", inputs, torch.randn(B, H, K, V), scale=0.3))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_step_of_rwkv7_matches_its_reference(dtype):
    torch.manual_seed(0)
    assert_close(*both("rwkv7_recurrence_step", token_rwkv7(dtype), torch.randn(B, H, K, V)))


def test_a_bfloat16_state_is_rounded_only_where_it_is_kept():
    torch.manual_seed(0)
    inputs = (*token(), -torch.rand(B, H), torch.rand(B, H))
    (o, state), (expected, theirs) = both(
        "linear_recurrence_step", inputs, torch.randn(B, H, K, V).to(BF16)
    )
    assert (o.double() - expected).norm() < 1e-6 * expected.norm()
    assert_close([state], [theirs])


def test_an_infinite_decay_clears_the_state():
    inputs = (*token(), torch.full((B, H), -torch.inf), None)
    assert_close(*both("linear_recurrence_step", inputs, torch.randn(B, H, K, V)))


def test_the_first_token_of_a_sequence_is_read_in_place():
    x = torch.randn(B, 5, 2 * G * K + H * V)
    q, k, v = x[:, 0].split([G * K, G * K, H * V], dim=-1)
    heads = (q.unflatten(-1, (G, K)), k.unflatten(-1, (G, K)), v.unflatten(-1, (H, V)))
    gates = -torch.rand(B, 5, H)
    assert_close(
        *both("linear_recurrence_step", (*heads, gates[:, 0], None), torch.randn(B, H, K, V))
    )


@pytest.mark.parametrize("variant", ["gated deltanet", "rwkv-7"])
def test_steps_equal_the_whole_sequence(variant):
    torch.manual_seed(0)
    T, state = 5, torch.zeros(B, H, K, V)
    if variant == "rwkv-7":
        tokens = [token_rwkv7() for _ in range(T)]
        recurrence, step = op.rwkv7_recurrence, op.rwkv7_recurrence_step
    else:
        tokens = [(*token(), -torch.rand(B, H), torch.rand(B, H)) for _ in range(T)]
        recurrence, step = op.linear_recurrence, op.linear_recurrence_step
    reads = [step(*inputs, state, backend="triton") for inputs in tokens]
    sequence = [torch.stack(x, 1) for x in zip(*tokens, strict=True)]
    o, last = recurrence(*sequence, backend="triton")
    torch.testing.assert_close(torch.stack(reads, 1), o, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


def test_the_operators_pass_torchs_opcheck():
    state = torch.randn(B, H, K, V)
    inputs = (*token(), -torch.rand(B, H), torch.rand(B, H), state, 0.3)
    tests = ("test_schema", "test_faketensor")  # a step has no gradient
    torch.library.opcheck(one_token.linear_recurrence_step_op, inputs, test_utils=tests)
    torch.library.opcheck(
        one_token.rwkv7_recurrence_step_op, (*token_rwkv7(), state), test_utils=tests
    )
