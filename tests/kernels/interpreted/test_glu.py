import pytest
import torch

from archfront.kernels.rows import glu, op

ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "oai"]


@pytest.mark.parametrize("shape", [(1, 1), (7, 60), (33, 128), (7, 1500)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_matches_its_reference(assert_matches_reference, shape, activation):
    gate, up = torch.randn(2, *shape)
    assert_matches_reference("rows", "glu", {"gate": gate, "up": up}, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(assert_matches_reference, activation, dtype):
    gate, up = torch.randn(2, 33, 128, dtype=dtype)
    assert_matches_reference("rows", "glu", {"gate": gate, "up": up}, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_beyond_the_limit_nothing_passes_and_at_it_all_does(assert_matches_reference, activation):
    gate, up = torch.randint(-12, 13, (2, 33, 100)) / 4
    settings = {"activation": activation, "limit": 1.5}
    assert_matches_reference("rows", "glu", {"gate": gate, "up": up}, **settings)


def test_oai_clamps_at_seven_by_default():
    gate, up = 5 * torch.randn(2, 7, 60)
    y = op.glu(gate, up, "oai", backend="triton")
    assert torch.equal(y, op.glu(gate, up, "oai", 7.0, backend="triton"))
    assert not torch.equal(y, op.glu(gate, up, "oai", 8.0, backend="triton"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_and_relu2_match_their_references(assert_matches_reference, dtype):
    gate, up = torch.randn(2, 33, 100, dtype=dtype)
    assert_matches_reference("rows", "swiglu", {"gate": gate, "up": up})
    assert_matches_reference("rows", "relu2", {"up": up})


def test_the_halves_of_one_projection_are_read_in_place(assert_matches_reference):
    gate, up = torch.randn(2, 3, 120).chunk(2, dim=-1)
    assert_matches_reference("rows", "swiglu", {"gate": gate, "up": up})


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # from numpy, the interpreter
def test_a_gate_far_from_zero_stays_finite():
    gate = torch.tensor([[-1e30, -200.0, 200.0]], requires_grad=True)
    y = op.swiglu(gate, torch.ones(1, 3), backend="triton")
    y.sum().backward()
    assert torch.equal(y, torch.tensor([[0.0, 0.0, 200.0]]))
    assert torch.equal(gate.grad, torch.tensor([[0.0, 0.0, 1.0]]))


def test_no_rows_give_no_rows():
    assert op.swiglu(torch.randn(0, 60), torch.randn(0, 60), backend="triton").shape == (0, 60)


def test_the_operators_pass_torchs_opcheck():
    gate, up, dy = (torch.randn(7, 60) for _ in range(3))
    torch.library.opcheck(glu.glu_backward_op, (dy, gate, up, "silu", 1.0))
    torch.library.opcheck(glu.relu2_backward_op, (dy, up))
    torch.library.opcheck(glu.glu_op, (None, up.clone().requires_grad_(), "relu2", None))
    torch.library.opcheck(glu.glu_op, (gate.requires_grad_(), up.requires_grad_(), "oai", 7.0))


def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch):
    compiled = torch.compile(op.swiglu, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, "swiglu", compiled)
    gate, up = torch.randn(2, 3, 120).chunk(2, dim=-1)
    assert_matches_reference("rows", "swiglu", {"gate": gate, "up": up})
