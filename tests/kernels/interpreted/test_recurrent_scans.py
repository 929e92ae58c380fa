"""The channel scan and Mamba-1's selective scan."""

import pytest
import torch

from archfront.kernels.recurrent import channels, op, selective

BF16 = torch.bfloat16


def inputs(B=2, T=20, N=70, dtype=torch.float32):
    x, state = torch.randn(B, T, N).to(dtype), torch.randn(B, N)
    return {"x": x, "decay": -torch.rand(B, T, N).to(dtype), "state": state}


def inputs_selective(B=1, T=20, N=40, S=5, dtype=torch.float32):
    B_BTS, C_BTS = torch.randn(2, B, T, S).to(dtype)
    return {
        "x": torch.randn(B, T, N).to(dtype),
        "dt": torch.rand(B, T, N).to(dtype),
        "A": -torch.rand(N, S),
        "B": B_BTS,
        "C": C_BTS,
        "D": torch.randn(N),
        "state": torch.randn(B, N, S),
    }


def segment_ids_of(B, T):
    ends = torch.tensor([1, 8, 9, T - 1])
    return torch.bucketize(torch.arange(T), ends, right=True).int().expand(B, T).contiguous()


@pytest.mark.parametrize("tokens", [1, 16, 17, 50])
def test_channel_scan_matches_its_reference(assert_matches_reference, tokens):
    assert_matches_reference("recurrent", "channel_scan", inputs(T=tokens))


@pytest.mark.parametrize("tokens", [1, 8, 17])
def test_selective_scan_matches_its_reference(assert_matches_reference, tokens):
    assert_matches_reference("recurrent", "selective_scan", inputs_selective(T=tokens))


@pytest.mark.parametrize("tokens", [9, 20])
def test_segments_do_not_interact(assert_matches_reference, tokens):
    segment_ids = segment_ids_of(2, tokens)
    assert_matches_reference("recurrent", "channel_scan", inputs(T=tokens), segment_ids=segment_ids)
    given = inputs_selective(T=tokens, N=10)
    assert_matches_reference("recurrent", "selective_scan", given, segment_ids=segment_ids[:1])


def test_bfloat16_errs_no_more_than_its_rounding(assert_matches_reference):
    assert_matches_reference("recurrent", "channel_scan", inputs(dtype=BF16))
    assert_matches_reference("recurrent", "selective_scan", inputs_selective(dtype=BF16))


def test_a_state_that_is_left_out_is_zero(assert_matches_reference):
    given, selected = inputs(), inputs_selective()
    del given["state"], selected["state"]
    assert_matches_reference("recurrent", "channel_scan", given)
    assert_matches_reference("recurrent", "selective_scan", selected)


def test_inputs_are_read_in_place(assert_matches_reference):
    x, decay = torch.randn(2, 20, 80).split(40, dim=-1)
    given = inputs(N=40) | {"x": x, "decay": -decay.abs()}
    assert_matches_reference("recurrent", "channel_scan", given)
    x, B_BTS, C_BTS = torch.randn(1, 20, 50).split([40, 5, 5], dim=-1)
    given = inputs_selective() | {"x": x, "B": B_BTS, "C": C_BTS}
    assert_matches_reference("recurrent", "selective_scan", given)


def test_a_very_strong_decay_clears_the_state_of_a_channel(assert_matches_reference):
    given = inputs()
    given["decay"][:, ::3] = -1e4
    assert_matches_reference("recurrent", "channel_scan", given)


def test_the_operators_pass_torchs_opcheck():
    x, decay, state = inputs(T=3, N=5).values()
    dx, dstate = torch.randn_like(x), torch.randn_like(state)
    segment_ids = segment_ids_of(2, 3)
    torch.library.opcheck(channels.scan_backward_op, (dx, dstate, x, decay, state, segment_ids))
    leaves = [y.requires_grad_() for y in (x, decay, state)]
    torch.library.opcheck(channels.scan_op, (*leaves, segment_ids))


def test_the_selective_operators_pass_torchs_opcheck():
    *given, state = inputs_selective(T=3, N=5).values()
    y, final, H = selective.selective_op(*given, state, None, True)
    torch.library.opcheck(selective.selective_backward_op, (y, final, H, *given, None))
    leaves = [x.requires_grad_() for x in (*given, state)]
    torch.library.opcheck(selective.selective_op, (*leaves, None, True))


@pytest.mark.parametrize("name", ["channel_scan", "selective_scan"])
def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch, name):
    compiled = torch.compile(getattr(op, name), backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, name, compiled)
    given = {"channel_scan": inputs, "selective_scan": inputs_selective}[name](T=5)
    assert_matches_reference("recurrent", name, given)
