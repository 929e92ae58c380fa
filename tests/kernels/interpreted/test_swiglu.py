import pytest
import torch

from archfront.kernels.rows import op, swiglu

AWKWARD = [(rows, width) for rows in (1, 7, 33) for width in (1, 60, 100, 128, 1000, 1500)]


@pytest.mark.parametrize(("rows", "width"), AWKWARD)
def test_swiglu_means_its_reference(assert_means, rows, width):
    gate, up = torch.randn(2, rows, width)
    assert_means("rows", "swiglu", {"gate": gate, "up": up})


@pytest.mark.parametrize(("rows", "width"), [(7, 60), (33, 128), (7, 1000)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_short_dtype_errs_no_more_than_its_rounding(assert_means, rows, width, dtype):
    gate, up = torch.randn(2, rows, width, dtype=dtype)
    assert_means("rows", "swiglu", {"gate": gate, "up": up})


def test_the_halves_of_one_projection_are_read_where_they_lie(assert_means):
    gate, up = torch.randn(2, 3, 120).chunk(2, dim=-1)
    assert_means("rows", "swiglu", {"gate": gate, "up": up})


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's voice, not a GPU's
def test_a_gate_far_from_zero_stays_finite():
    gate = torch.tensor([[-1e30, -200.0, 200.0]], requires_grad=True)
    y = op.swiglu(gate, torch.ones(1, 3), backend="triton")
    y.sum().backward()
    assert torch.equal(y, torch.tensor([[0.0, 0.0, 200.0]]))
    assert torch.equal(gate.grad, torch.tensor([[0.0, 0.0, 1.0]]))


def test_no_rows_give_no_rows():
    assert op.swiglu(torch.randn(0, 60), torch.randn(0, 60), backend="triton").shape == (0, 60)


def test_the_operators_keep_torchs_own_rules():
    gate, up, dy = (torch.randn(7, 60) for _ in range(3))
    torch.library.opcheck(swiglu.swiglu_backward_op, (dy, gate, up))
    torch.library.opcheck(swiglu.swiglu_op, (gate.requires_grad_(), up.requires_grad_()))


def test_the_door_compiles_into_one_graph(assert_means, monkeypatch):
    compiled = torch.compile(op.swiglu, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, "swiglu", compiled)
    gate, up = torch.randn(2, 3, 120).chunk(2, dim=-1)
    assert_means("rows", "swiglu", {"gate": gate, "up": up})
