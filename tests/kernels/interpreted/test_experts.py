import pytest
import torch

from archfront.kernels.experts import linear, mixture, op, reference
from archfront.kernels.experts.configs import FEW


def choices(tokens, top_k, experts, dropped=0.0):
    chosen = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)])
    chosen[torch.rand(tokens, top_k) < dropped] = -1
    return chosen


def scaled(*shape, dtype):
    return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype)


@pytest.fixture
def assert_matches_mixture(assert_matches_reference, monkeypatch):
    """assert_matches_mixture(chosen, D, F, experts, activation): against the reference."""

    def of_inputs(function, chosen, gated):
        def with_inputs(x, topk_weights, *weights, **settings):
            return function(
                x, chosen, topk_weights, *([] if gated else [None]), *weights, **settings
            )

        return with_inputs

    def check(chosen, D, F, experts, activation="silu", limit=None, dtype=torch.float32):
        gated = activation != "relu2"
        for module in (reference, op):
            monkeypatch.setattr(module, "mixture", of_inputs(module.mixture, chosen, gated))
        inputs = {
            "x": torch.randn(len(chosen), D, dtype=dtype),
            "topk_weights": torch.rand(chosen.shape, dtype=dtype),
        }
        if gated:
            inputs["gate"] = scaled(experts, F, D, dtype=dtype)
        inputs["up"] = scaled(experts, F, D, dtype=dtype)
        inputs["down"] = scaled(experts, D, F, dtype=dtype)
        assert_matches_reference("experts", "mixture", inputs, activation=activation, limit=limit)

    return check


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "oai", "relu2"])
def test_a_mixture_matches_its_reference(assert_matches_mixture, activation):
    assert_matches_mixture(choices(9, 2, 3), 20, 36, 3, activation)


@pytest.mark.parametrize("activation", ["silu", "oai"])
def test_what_a_limit_clamps_has_no_gradient(assert_matches_mixture, activation):
    assert_matches_mixture(choices(9, 2, 3), 20, 36, 3, activation, limit=0.5)


def test_dropped_choices_and_idle_experts_match_their_reference(assert_matches_mixture):
    chosen = choices(17, 2, 3, dropped=0.4)
    chosen[chosen == 1] = 4
    assert_matches_mixture(chosen, 16, 16, 6)


def test_a_single_token_matches_its_reference(assert_matches_mixture):
    assert_matches_mixture(torch.tensor([[2]]), 1, 1, 4)


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize(("tokens", "experts"), [(17, 3), (70, 1)])
def test_bfloat16_errs_no_more_than_its_rounding(
    assert_matches_mixture, activation, tokens, experts
):
    top_k = min(2, experts)
    many = tokens * top_k > FEW * experts
    assert many == (experts == 1), "both classes of tiles are met"
    assert_matches_mixture(
        choices(tokens, top_k, experts), 48, 80, experts, activation, dtype=torch.bfloat16
    )


@pytest.mark.parametrize(("rows", "experts", "wide", "long"), [(1, 2, 16, 16), (70, 4, 60, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_linear_matches_its_reference(
    assert_matches_reference, rows, experts, wide, long, dtype
):
    groups = op.group(torch.arange(rows) % 3 * 2 % experts, experts)
    inputs = {
        "x": torch.randn(rows, wide, dtype=dtype),
        "weight": scaled(experts, long, wide, dtype=dtype),
    }
    assert_matches_reference("experts", "grouped_linear", inputs, bias_EO=None, groups=groups)
    inputs["bias"] = torch.randn(experts, long, dtype=dtype)
    assert_matches_reference("experts", "grouped_linear", inputs, groups=groups)


def test_a_row_of_no_expert_gives_zero(assert_matches_reference):
    groups = op.group(torch.tensor([1, -1, 0, -1, -1] * 4), 2)
    inputs = {"x": torch.randn(20, 16), "weight": torch.randn(2, 32, 16)}
    assert_matches_reference("experts", "grouped_linear", inputs, bias_EO=None, groups=groups)
    y = op.grouped_linear(*inputs.values(), None, groups, backend="triton")
    assert torch.equal(y[8:], torch.zeros(12, 32))


def test_slices_are_read_in_place(assert_matches_reference):
    groups = op.group(torch.tensor([0, 1, 1]), 2)
    inputs = {"x": torch.randn(3, 40)[:, :16], "weight": torch.randn(2, 8, 16)}
    assert_matches_reference("experts", "grouped_linear", inputs, bias_EO=None, groups=groups)


def test_no_tokens_give_no_tokens_and_zero_gradients():
    x, topk_weights = torch.randn(0, 16), torch.rand(0, 2)
    chosen = torch.empty(0, 2, dtype=torch.int64)
    up, down = torch.randn(3, 8, 16, requires_grad=True), torch.randn(3, 16, 8)
    y = op.mixture(x, chosen, topk_weights, None, up, down, "relu2", backend="triton")
    y.sum().backward()
    assert y.shape == (0, 16)
    assert torch.equal(up.grad, torch.zeros_like(up))


def test_without_gradients_nothing_is_kept():
    groups = op.group(torch.tensor([0, 1, 1]), 2)
    x, up, down = torch.randn(3, 16), torch.randn(2, 8, 16), torch.randn(2, 16, 8)
    rest = groups.order_M, groups.offsets_E1, "silu", None
    for keep, rows in ((True, 3), (False, 0)):
        _, gate, up_rows = mixture.mixture_op(x, torch.ones(3, 1), up, up, down, *rest, keep)
        assert len(gate) == len(up_rows) == rows


def test_the_operators_pass_torchs_opcheck():
    groups = op.group(torch.tensor([0, 1, 1, 0]), 2)
    order, offsets = groups.order_M, groups.offsets_E1
    x, up, down = torch.randn(4, 16), torch.randn(2, 8, 16), torch.randn(2, 16, 8)
    leaves = [x.requires_grad_(), up.requires_grad_(), down.requires_grad_()]
    torch.library.opcheck(linear.grouped_linear_op, (leaves[0], leaves[1], None, offsets))
    topk_weights = torch.rand(4, 1, requires_grad=True)
    settings = order, offsets, "silu", None, True
    torch.library.opcheck(mixture.mixture_op, (x, topk_weights, up, up.detach(), down, *settings))


def test_the_public_api_compiles_into_one_graph():
    chosen, topk_weights = choices(4, 2, 3), torch.rand(4, 2)
    x, up, down = torch.randn(4, 16), torch.randn(3, 8, 16), torch.randn(3, 16, 8)
    inputs = x, chosen, topk_weights, up, up, down, "silu"
    compiled = torch.compile(op.mixture, backend="aot_eager", fullgraph=True)
    y = compiled(*inputs, backend="triton")
    assert torch.equal(y, op.mixture(*inputs, backend="triton"))
