"""The recurrences against the naive implementations of flash-linear-attention, in float32."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archfront.kernels.recurrent import op

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a GPU
    pytest.importorskip("fla", reason="fla-core is not installed")
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.hgrn.naive import naive_recurrent_hgrn
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
    from fla.ops.retention.naive import naive_retention
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

B, T, H, K, V = 2, 70, 3, 16, 24
SCALE, TOLERANCE = K**-0.5, 1e-5
STATE = {"output_final_state": True}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and an initial state; keys of length one."""
    q, k = torch.randn(2, B, T, H, K)
    return q, F.normalize(k, dim=-1), torch.randn(B, T, H, V), torch.randn(B, H, K, V)


def decay(*of: int) -> Tensor:
    return F.logsigmoid(torch.randn(B, T, H, *of))


def heads_first(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


def test_linear_attention() -> None:
    q, k, v, _ = inputs()
    theirs, _ = naive_recurrent_linear_attn(q, k, v)
    assert_same(op.linear_recurrence(q, k, v, scale=SCALE)[0], theirs)


def test_retention() -> None:
    q, k, _, _ = inputs()
    v = torch.randn(B, T, H, K)
    rates = torch.log1p(-torch.exp2(-5.0 - torch.arange(H)))
    (theirs,) = heads_first(naive_retention(*heads_first(q, k, v)))
    assert_same(op.linear_recurrence(q, k, v, rates, scale=SCALE)[0], theirs)


def test_a_decay_for_each_head_and_token() -> None:
    q, k, v, before = inputs()
    g = decay()
    o, state = op.linear_recurrence(q, k, v, g, state_BHKV=before, scale=SCALE)
    theirs = naive_recurrent_simple_gla(q, k, v, g, initial_state=before, **STATE)
    assert_same(o, theirs[0])
    assert_same(state, theirs[1])


def test_gla() -> None:
    q, k, v, before = inputs()
    g = decay(K)
    o, state = op.linear_recurrence(q, k, v, g, state_BHKV=before, scale=SCALE)
    theirs = naive_recurrent_gla(q, k, v, g, initial_state=before, **STATE)
    assert_same(o, theirs[0])
    assert_same(state, theirs[1])


def test_the_delta_rule() -> None:
    q, k, v, before = inputs()
    beta = torch.rand(B, T, H)
    o, state = op.linear_recurrence(q, k, v, None, beta, before, scale=SCALE)
    theirs = delta_rule_recurrence(*heads_first(q, k, v, beta), initial_state=before)
    assert_same(o, theirs[0].transpose(1, 2))
    assert_same(state, theirs[1])


def test_the_gated_delta_rule() -> None:
    q, k, v, before = inputs()
    beta, g = torch.rand(B, T, H), decay()
    o, state = op.linear_recurrence(q, k, v, g, beta, before, scale=SCALE)
    theirs = naive_recurrent_gated_delta_rule(q, k, v, beta, g, initial_state=before, **STATE)
    assert_same(o, theirs[0])
    assert_same(state, theirs[1])


def test_kda() -> None:
    q, k, v, before = inputs()
    beta, g = torch.rand(B, T, H), decay(K)
    o, state = op.linear_recurrence(q, k, v, g, beta, before, scale=SCALE)
    theirs = naive_recurrent_kda(q, k, v, g, beta, initial_state=before, **STATE)
    assert_same(o, theirs[0])
    assert_same(state, theirs[1])


def test_rwkv7() -> None:
    q, k, v, before = inputs()
    w, gate = decay(K), torch.rand(B, T, H, K)
    a, b = -k, k * gate
    o, state = op.rwkv7_recurrence(q * SCALE, w, k, v, a, b, before)
    theirs = dplr_recurrence(*heads_first(q, k, v, a, b, w), initial_state=before)
    assert_same(o, theirs[0].transpose(1, 2))
    assert_same(state, theirs[1])


def test_a_number_for_each_channel() -> None:
    x, g = torch.randn(B, T, K), F.logsigmoid(torch.randn(B, T, K))
    before = torch.randn(B, K)
    h, state = op.channel_scan(x, g, before)
    theirs = naive_recurrent_hgrn(x, g, initial_state=before, **STATE)
    assert_same(h, theirs[0])
    assert_same(state, theirs[1])
