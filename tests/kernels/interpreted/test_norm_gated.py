import pytest
import torch

from archfront.kernels.rows import gated_norm, op

EPS = 0.1  # large, so that an epsilon in the wrong place shows
KINDS = [(act, first) for act in ("silu", "sigmoid") for first in (False, True)]


def inputs_of(*shape, dtype=torch.float32):
    x, gate = torch.randn(2, *shape, dtype=dtype)
    return {"x": x, "gate": gate, "weight": torch.randn(shape[-1], dtype=dtype)}


@pytest.mark.parametrize(("activation", "gate_first"), KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 60), (20, 600), (300, 20)])
def test_the_gated_norm_matches_its_reference(
    assert_matches_reference, shape, activation, gate_first
):
    settings = {"eps": EPS, "activation": activation, "gate_first": gate_first}
    assert_matches_reference("rows", "gated_rms_norm", inputs_of(*shape), **settings)


@pytest.mark.parametrize(("activation", "gate_first"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(
    assert_matches_reference, dtype, activation, gate_first
):
    settings = {"eps": EPS, "activation": activation, "gate_first": gate_first}
    assert_matches_reference("rows", "gated_rms_norm", inputs_of(33, 128, dtype=dtype), **settings)


@pytest.mark.parametrize("gate_first", [False, True])
def test_each_group_is_normalized_by_itself(assert_matches_reference, gate_first):
    settings = {"eps": EPS, "gate_first": gate_first, "groups": 3}
    assert_matches_reference("rows", "gated_rms_norm", inputs_of(100, 60), **settings)


def test_heads_share_a_weight_and_read_their_gate_in_place(assert_matches_reference):
    z, _ = torch.randn(2, 5, 180).split([120, 60], dim=-1)
    inputs = inputs_of(2, 5, 4, 30) | {"gate": z.unflatten(-1, (4, 30))}
    inputs["weight"] = inputs["weight"][:30]
    assert_matches_reference("rows", "gated_rms_norm", inputs, eps=EPS, gate_first=False)


def test_no_rows_give_no_rows_and_no_weight_gradient():
    x, weight = torch.randn(0, 60), torch.randn(60, requires_grad=True)
    y = op.gated_rms_norm(x, x, weight, EPS, gate_first=True, backend="triton")
    y.sum().backward()
    assert y.shape == (0, 60)
    assert torch.equal(weight.grad, torch.zeros(60))


def test_the_operators_pass_torchs_opcheck():
    x, gate = torch.randn(2, 7, 2, 30)
    dy, weight = torch.randn(14, 30), torch.randn(30)
    settings = EPS, "silu", True, 3
    torch.library.opcheck(gated_norm.gated_rms_norm_backward_op, (dy, x, gate, weight, *settings))
    leaves = [t.requires_grad_() for t in (x.clone(), gate.clone(), weight)]
    torch.library.opcheck(gated_norm.gated_rms_norm_op, (*leaves, *settings))
