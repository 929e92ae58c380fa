"""The same contract on a GPU: run as `pytest -m gpu tests/kernels`."""

import pytest
import torch

from archfront.kernels.rows import op, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("poison"),
]
EPS = 0.1
SHAPES = [(1, 60), (7, 60), (33, 100), (2, 1000), (5000, 128), (1000, 4096), (600, 8192)]


@pytest.fixture(autouse=True)
def on_the_gpu():
    with torch.device("cuda"):
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_means_its_reference(assert_means, shape, dtype):
    x, residual = torch.randn(2, *shape, dtype=dtype)
    weight = torch.randn(shape[1], dtype=dtype)
    for zero_centered in (False, True):
        settings = {"eps": EPS, "zero_centered": zero_centered}
        assert_means("rows", "rms_norm", {"x": x, "weight": weight}, **settings)
        assert_means(
            "rows", "add_rms_norm", {"x": x, "residual": residual, "weight": weight}, **settings
        )


@pytest.mark.parametrize("shape", [*SHAPES, (100, 14_336)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_means_its_reference(assert_means, shape, dtype):
    gate, up = torch.randn(2, *shape, dtype=dtype)
    assert_means("rows", "swiglu", {"gate": gate, "up": up})


def test_slices_of_a_projection_are_read_where_they_lie(assert_means):
    gate, up = torch.randn(2, 33, 2000, dtype=torch.bfloat16).chunk(2, dim=-1)
    weight = torch.randn(1000, dtype=torch.bfloat16)
    assert_means("rows", "swiglu", {"gate": gate, "up": up})
    assert_means("rows", "add_rms_norm", {"x": gate, "residual": up, "weight": weight}, eps=EPS)


def test_three_runs_give_the_same_bits():
    x, residual = torch.randn(2, 5000, 1024, dtype=torch.bfloat16).unbind()
    weight = torch.randn(1024, dtype=torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, residual, weight)]

    def run():
        normed, summed = op.add_rms_norm(*leaves, EPS)
        y = op.swiglu(normed, summed)
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_rows_past_two_to_the_31_elements_are_reached():
    x = torch.zeros(140_000, 16_384, dtype=torch.bfloat16)
    x[-1] = torch.randn(16_384)
    y = op.rms_norm(x, torch.ones(16_384), EPS)
    torch.testing.assert_close(y[-1], reference.rms_norm(x[-1], torch.ones(16_384), EPS))
    assert y[-2].count_nonzero() == 0


def test_no_rows_give_no_rows():
    weight = torch.randn(60, requires_grad=True)
    y = op.rms_norm(torch.randn(0, 60), weight, EPS)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(60))


def test_the_door_compiles_into_one_graph(assert_means, monkeypatch):
    compiled = torch.compile(op.add_rms_norm, fullgraph=True)
    monkeypatch.setattr(op, "add_rms_norm", compiled)
    x, residual = torch.randn(2, 33, 1000)
    inputs = {"x": x, "residual": residual, "weight": torch.randn(1000)}
    assert_means("rows", "add_rms_norm", inputs, eps=EPS)
