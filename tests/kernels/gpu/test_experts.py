"""Experts against their reference on a GPU: run as `pytest -m gpu tests/kernels/gpu`."""

import pytest
import torch

from archfront.kernels.experts import op, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("nan_filled_empty"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# tokens, choices, experts, model width, hidden width
MIXTURES = [
    (1, 2, 8, 64, 128),
    (17, 2, 5, 60, 100),
    (300, 8, 128, 256, 96),
    (2000, 4, 16, 1024, 768),
    (600, 1, 3, 2048, 512),
]


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what a deterministic cuBLAS asks for
    with torch.device("cuda"):
        yield


def choices(tokens, top_k, experts):
    """A tenth of the choices dropped, but never the first of a token."""
    chosen = torch.rand(tokens, experts).topk(top_k).indices
    dropped = (torch.rand(tokens, top_k) < 0.1) & (torch.arange(top_k) > 0)
    return chosen.masked_fill(dropped, -1)


def scaled(*shape, dtype):
    return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype)


def a_mixture(N, K, E, D, F, dtype, gated=True):
    gates = {"gate": scaled(E, F, D, dtype=dtype)} if gated else {}
    return {
        "x": torch.randn(N, D, dtype=dtype),
        "topk_weights": torch.rand(N, K, dtype=dtype),
        **gates,
        "up": scaled(E, F, D, dtype=dtype),
        "down": scaled(E, D, F, dtype=dtype),
    }


@pytest.fixture
def assert_matches_mixture(assert_matches_reference, monkeypatch):
    """assert_matches_mixture(shape, dtype, activation): against the reference."""

    def check(shape, dtype, activation="silu"):
        gated = activation != "relu2"
        chosen = choices(*shape[:3])

        def of_inputs(function):
            def with_inputs(x, topk_weights, *weights, **settings):
                return function(
                    x, chosen, topk_weights, *([] if gated else [None]), *weights, **settings
                )

            return with_inputs

        for module in (reference, op):
            monkeypatch.setattr(module, "mixture", of_inputs(module.mixture))
        inputs = a_mixture(*shape, dtype, gated)
        assert_matches_reference("experts", "mixture", inputs, activation=activation)

    return check


@pytest.mark.parametrize("shape", MIXTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixture_matches_its_reference(assert_matches_mixture, shape, dtype):
    assert_matches_mixture(shape, dtype)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "oai", "relu2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_activation_matches_its_reference(assert_matches_mixture, activation, dtype):
    assert_matches_mixture((500, 2, 4, 256, 384), dtype, activation)


@pytest.mark.parametrize(
    ("rows", "experts", "wide", "long"), [(1, 2, 16, 16), (70, 4, 60, 33), (5000, 8, 1024, 1536)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_grouped_linear_matches_its_reference(
    assert_matches_reference, rows, experts, wide, long, dtype
):
    groups = op.group((torch.arange(rows) + 1) % (experts + 1) - 1, experts)
    inputs = {
        "x": torch.randn(rows, wide, dtype=dtype),
        "weight": scaled(experts, long, wide, dtype=dtype),
        "bias": torch.randn(experts, long, dtype=dtype),
    }
    assert_matches_reference("experts", "grouped_linear", inputs, groups=groups)


@pytest.mark.parametrize("rows", [40, 4000])  # both classes of tiles
def test_integers_are_summed_exactly(rows):
    groups = op.group(torch.arange(rows) % 7, 16)
    x, dy = (torch.randint(-1, 2, (rows, 256)).bfloat16().requires_grad_() for _ in range(2))
    weight = torch.randint(-1, 2, (16, 256, 256)).bfloat16().requires_grad_()
    y, expected = (
        f(x.to(dtype), weight.to(dtype), None, groups)
        for f, dtype in (
            (op.grouped_linear, torch.bfloat16),
            (reference.grouped_linear, torch.float64),
        )
    )
    gradients, expected_gradients = (
        torch.autograd.grad(z, (x, weight), dy.detach().to(z.dtype)) for z in (y, expected)
    )
    for ours, exact in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert torch.equal(ours, exact.to(torch.bfloat16))


def test_three_runs_give_the_same_bits():
    chosen = choices(2000, 4, 16)
    inputs = a_mixture(2000, 4, 16, 512, 256, torch.bfloat16)
    x, topk_weights, *weights = (t.requires_grad_() for t in inputs.values())

    def run():
        y = op.mixture(x, chosen, topk_weights, *weights, "silu")
        return y, *torch.autograd.grad(y, [x, topk_weights, *weights], torch.ones_like(y))

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_hidden_features_past_two_to_the_31_elements_are_reached():
    tokens, hidden = 150_000, 16_384
    x = torch.zeros(tokens, 16, dtype=torch.bfloat16)
    x[-1] = 1.0
    chosen, topk_weights = torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
    up, down = torch.ones(1, hidden, 16), torch.full((1, 16, hidden), 2.0**-14)
    y = op.mixture(x, chosen, topk_weights, None, up.bfloat16(), down.bfloat16(), "relu2")
    assert torch.equal(y[-1], torch.full((16,), 256.0, dtype=torch.bfloat16))
    assert y[:-1].count_nonzero() == 0


def test_no_host_waits_for_the_device():
    chosen = choices(500, 2, 8)
    inputs = a_mixture(500, 2, 8, 256, 128, torch.bfloat16)
    x, topk_weights, *weights = (t.requires_grad_() for t in inputs.values())
    op.mixture(x, chosen, topk_weights, *weights, "silu").sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        op.mixture(x, chosen, topk_weights, *weights, "silu").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code
def test_the_public_api_compiles_into_one_graph():
    chosen = choices(500, 2, 8)
    x, topk_weights, *weights = a_mixture(500, 2, 8, 256, 128, torch.bfloat16).values()
    compiled = torch.compile(op.mixture, fullgraph=True)
    inputs = x, chosen, topk_weights, *weights, "silu"
    assert torch.equal(compiled(*inputs), op.mixture(*inputs))
