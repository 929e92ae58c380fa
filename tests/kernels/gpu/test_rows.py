"""Row operators against their reference on a GPU: run as `pytest -m gpu tests/kernels/gpu`."""

import pytest
import torch

from archfront.kernels.rows import op, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("nan_filled_empty"),
]
EPS = 0.1
SHAPES = [(1, 60), (7, 60), (33, 100), (2, 1000), (5000, 128), (1000, 4096), (600, 8192)]
DTYPES = [torch.float32, torch.bfloat16]
# batch, tokens, channels, taps
CONVOLUTIONS = [(1, 1, 8, 4), (2, 17, 60, 3), (2, 1000, 1000, 2), (3, 4096, 2048, 4)]
# batch, tokens, heads, width, rotated
ROPES = [(1, 1, 1, 2, 2), (2, 17, 3, 20, 12), (2, 1000, 1, 64, 64), (2, 2048, 32, 128, 128)]


@pytest.fixture(autouse=True)
def on_the_gpu():
    with torch.device("cuda"):
        yield


def tables(*shape):
    angle = 3 * torch.randn(shape)
    return {"cos": angle.cos(), "sin": angle.sin()}


def segment_ids_of(batch, tokens):
    return (torch.arange(tokens, dtype=torch.int32) // 37).expand(batch, tokens).contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_matches_its_reference(assert_matches_reference, shape, dtype):
    x, residual = torch.randn(2, *shape, dtype=dtype)
    weight = torch.randn(shape[1], dtype=dtype)
    for zero_centered in (False, True):
        settings = {"eps": EPS, "zero_centered": zero_centered}
        assert_matches_reference("rows", "rms_norm", {"x": x, "weight": weight}, **settings)
        assert_matches_reference(
            "rows", "add_rms_norm", {"x": x, "residual": residual, "weight": weight}, **settings
        )


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gated_norm_matches_its_reference(assert_matches_reference, shape, dtype, gate_first):
    x, gate = torch.randn(2, *shape, dtype=dtype)
    inputs = {"x": x, "gate": gate, "weight": torch.randn(shape[1], dtype=dtype)}
    for activation, groups in (("silu", 1), ("sigmoid", 4)):
        settings = {"eps": EPS, "activation": activation, "gate_first": gate_first}
        assert_matches_reference("rows", "gated_rms_norm", inputs, groups=groups, **settings)


@pytest.mark.parametrize("shape", [(7, 60), (2, 1000), (2, 1000, 16, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_l2_norm_matches_its_reference(assert_matches_reference, shape, dtype):
    assert_matches_reference("rows", "l2_norm", {"x": torch.randn(shape, dtype=dtype)}, eps=EPS)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "oai"])
@pytest.mark.parametrize("shape", [*SHAPES, (100, 14_336)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_glu_matches_its_reference(assert_matches_reference, shape, dtype, activation):
    gate, up = torch.randn(2, *shape, dtype=dtype)
    for limit in (None, 1.0):
        settings = {"activation": activation, "limit": limit}
        assert_matches_reference("rows", "glu", {"gate": gate, "up": up}, **settings)


@pytest.mark.parametrize("shape", [*SHAPES, (100, 14_336)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu2_matches_its_reference(assert_matches_reference, shape, dtype):
    assert_matches_reference("rows", "relu2", {"up": torch.randn(shape, dtype=dtype)})


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "heads", "width", "rotated"), ROPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_matches_its_reference(
    assert_matches_reference, batch, tokens, heads, width, rotated, interleaved, last, dtype
):
    x = torch.randn(batch, tokens, heads, width, dtype=dtype)
    settings = {"rotated": rotated, "interleaved": interleaved, "last": last}
    for shape in ((tokens, rotated // 2), (batch, tokens, rotated // 2)):
        assert_matches_reference("rows", "rope", {"x": x}, **tables(*shape), **settings)


@pytest.mark.parametrize(("batch", "tokens", "channels", "taps"), CONVOLUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_convolution_matches_its_reference(
    assert_matches_reference, batch, tokens, channels, taps, dtype
):
    inputs = {
        "x": torch.randn(batch, tokens, channels, dtype=dtype),
        "weight": torch.randn(channels, taps, dtype=dtype),
        "bias": torch.randn(channels, dtype=dtype),
    }
    past = {
        "segment_ids": segment_ids_of(batch, tokens),
        "tail_BWN": torch.randn(batch, taps - 1, channels, dtype=dtype),
    }
    for activation, settings in (("silu", {}), ("silu", past), (None, past)):
        assert_matches_reference("rows", "short_conv", inputs, activation=activation, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_by_token_equals_all_at_once(dtype):
    x, weight = torch.randn(3, 9, 2048, dtype=dtype), torch.randn(2048, 4, dtype=dtype)
    tail = torch.zeros(3, 3, 2048, dtype=dtype)
    steps = [op.short_conv_step(x[:, t], tail, weight, activation="silu") for t in range(9)]
    whole = op.short_conv(x, weight, activation="silu")
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    assert torch.equal(tail, x[:, -3:])


def test_slices_of_a_projection_are_read_in_place(assert_matches_reference):
    gate, up = torch.randn(2, 33, 2000, dtype=torch.bfloat16).chunk(2, dim=-1)
    weight = torch.randn(1000, dtype=torch.bfloat16)
    assert_matches_reference("rows", "swiglu", {"gate": gate, "up": up})
    assert_matches_reference(
        "rows", "add_rms_norm", {"x": gate, "residual": up, "weight": weight}, eps=EPS
    )
    taps = torch.randn(1000, 4, dtype=torch.bfloat16)
    assert_matches_reference("rows", "short_conv", {"x": up, "weight": taps}, activation="silu")
    x, z = (half.unflatten(-1, (10, 100)) for half in (gate, up))
    inputs = {"x": x, "gate": z, "weight": weight[:100].clone()}
    assert_matches_reference("rows", "gated_rms_norm", inputs, eps=EPS, gate_first=False)
    assert_matches_reference("rows", "l2_norm", {"x": z}, eps=EPS)
    assert_matches_reference("rows", "rope", {"x": z}, **tables(33, 32), rotated=64)


def test_whole_numbers_give_exact_results():
    x, up, dy = torch.randint(-3, 4, (3, 2, 999, 256)).float()
    weight, bias = torch.randint(-3, 4, (256, 4)).float(), torch.randint(-3, 4, (256,)).float()
    quarter = torch.randint(4, (999, 64))
    cos, sin = torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]])[:, quarter]
    heads, segment_ids = (2, 999, 2, 128), segment_ids_of(2, 999)
    leaves = [t.requires_grad_() for t in (x, up, weight, bias)]

    def run(backend):
        y = op.short_conv(
            x, weight, bias, activation=None, segment_ids=segment_ids, backend=backend
        ) + op.relu2(up, backend=backend)
        y = op.rope(y.view(heads), cos, sin, rotated=128, interleaved=True, backend=backend)
        return y, *torch.autograd.grad(y, leaves, dy.view(heads))

    for ours, exact in zip(run("triton"), run("torch"), strict=True):
        assert torch.equal(ours, exact)


def test_three_runs_give_the_same_bits():
    x, residual = torch.randn(2, 4, 1250, 1024, dtype=torch.bfloat16).unbind()
    weight, taps = torch.randn(1024, dtype=torch.bfloat16), torch.randn(1024, 4)
    leaves = [t.requires_grad_() for t in (x, residual, weight, taps)]
    turns = tables(1250, 32)

    def run():
        normed, summed = op.add_rms_norm(*leaves[:3], EPS)
        y = op.short_conv(op.swiglu(normed, summed), taps, activation="silu")
        y = op.gated_rms_norm(y, summed, weight, EPS, gate_first=True, groups=2)
        y = op.rope(op.l2_norm(y.unflatten(-1, (16, 64)), EPS), **turns, rotated=64)
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
    y = op.short_conv(x[None], torch.ones(16_384, 2), activation=None)
    assert torch.equal(y[0, -1], x[-1])
    assert y[0, -2].count_nonzero() == 0


def test_no_rows_give_no_rows():
    weight = torch.randn(60, requires_grad=True)
    y = op.rms_norm(torch.randn(0, 60), weight, EPS)
    y = op.gated_rms_norm(y, y, weight, EPS, gate_first=True)
    y = op.short_conv(y[None], torch.randn(60, 4), weight, activation="silu")
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(60))


def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch):
    compiled = torch.compile(op.add_rms_norm, fullgraph=True)
    monkeypatch.setattr(op, "add_rms_norm", compiled)
    x, residual = torch.randn(2, 33, 1000)
    inputs = {"x": x, "residual": residual, "weight": torch.randn(1000)}
    assert_matches_reference("rows", "add_rms_norm", inputs, eps=EPS)
