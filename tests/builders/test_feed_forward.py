"""The dense feed-forward and the mixture of experts."""

import pytest
import torch
from torch.nn import functional as F

from archfront.builders.body import Body, Pass, text_positions
from archfront.builders.model import build
from archfront.builders.moe import MoE
from archfront.search_space.architecture import Architecture

MOE = {"kind": "moe", "n_experts": 6, "top_k": 2, "d_expert": 20}


def body(block: dict[str, object], dtype: torch.dtype = torch.float64) -> Body:
    symbol = "E" if block["kind"] == "moe" else "-"
    architecture = Architecture.model_validate(
        {"d_model": 16, "vocab_size": 8, "pattern": symbol, "blocks": {symbol: block}}
    )
    return build(architecture, dtype=dtype).blocks[0].body


def moe(**changes: object) -> MoE:
    found = body(MOE | changes)
    assert isinstance(found, MoE)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(20)
    return found


def run(body: Body, x: torch.Tensor) -> torch.Tensor:
    tokens = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    return body(x, Pass(positions_BT=text_positions(*x.shape[:2], x.device), tokens_BT=tokens))


def text(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 25, 16, generator=generator, dtype=dtype)


ACTIVATIONS = {
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "geglu": lambda gate, up: F.gelu(gate) * up,
    "relu2": lambda _, up: F.relu(up) ** 2,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_dense_feed_forward_is_down_of_activated_up(activation: str) -> None:
    mlp, x = body({"kind": "ffn", "width": 24, "activation": activation}), text()
    gate = None if activation == "relu2" else x @ mlp.gate_proj.weight.mT
    hidden = ACTIVATIONS[activation](gate, x @ mlp.up_proj.weight.mT)
    torch.testing.assert_close(run(mlp, x), hidden @ mlp.down_proj.weight.mT)


@pytest.mark.parametrize("router", ["softmax", "sigmoid_bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_shared", [0, 2])
def test_a_mixture_equals_a_loop_over_tokens(router: str, activation: str, n_shared: int) -> None:
    mixture, x = moe(router=router, activation=activation, n_shared=n_shared), text()
    bias = torch.zeros(6)
    if router == "sigmoid_bias":
        bias = mixture.correction_bias.copy_(torch.linspace(-0.2, 0.2, 6))
    experts = mixture.experts

    def one(token: torch.Tensor) -> torch.Tensor:
        logits = mixture.router.weight @ token
        score = logits.softmax(0) if router == "softmax" else logits.sigmoid()
        chosen = (score + bias).topk(2).indices
        y = (
            torch.zeros_like(token)
            if mixture.shared is None
            else mixture.shared.feed(token[None])[0]
        )
        for e in chosen:
            gate = None if activation == "relu2" else experts.gate_proj.weight[e] @ token
            hidden = ACTIVATIONS[activation](gate, experts.up_proj.weight[e] @ token)
            y = y + score[e] / score[chosen].sum() * (experts.down_proj.weight[e] @ hidden)
        return y

    expected = torch.stack([one(token) for token in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(run(mixture, x), expected)


def test_the_load_counts_each_selection_once() -> None:
    mixture, x = moe(), text()
    run(mixture, x)
    logits = x.flatten(0, 1) @ mixture.router.weight.mT
    chosen = logits.topk(2).indices
    assert mixture.load_E.tolist() == [(chosen == e).sum().item() for e in range(6)]


def test_an_unselected_expert_gets_a_zero_gradient() -> None:
    mixture = moe(n_experts=6, top_k=1)
    run(mixture, text()[:1, :2]).sum().backward()
    idle = (mixture.load_E == 0).nonzero().flatten()
    assert len(idle) >= 4
    assert mixture.experts.up_proj.weight.grad[idle].count_nonzero() == 0


@pytest.mark.parametrize("router", ["softmax", "sigmoid_bias"])
def test_the_router_gets_a_gradient_from_the_output(router: str) -> None:
    mixture = moe(router=router)
    run(mixture, text()).square().sum().backward()
    assert mixture.router.weight.grad.abs().max() > 0


def test_the_correction_bias_equalizes_the_load() -> None:
    mixture, x = moe(router="sigmoid_bias"), text()
    run(mixture, x)
    before = mixture.load_E.float().std()
    for _ in range(200):
        mixture.rebalance(rate=0.01)
        run(mixture, x)
    assert mixture.load_E.float().std() < before / 3


def test_the_correction_bias_is_a_saved_fp32_buffer() -> None:
    mixture = body(MOE | {"router": "sigmoid_bias"}, torch.bfloat16)
    assert "correction_bias" in mixture.state_dict()
    assert "correction_bias" not in dict(mixture.named_parameters())
    assert mixture.correction_bias.dtype == torch.float32


def test_minimizing_the_balance_loss_equalizes_the_load() -> None:
    mixture, x = moe(), text()
    optimizer = torch.optim.Adam([mixture.router.weight], lr=0.02)
    run(mixture, x)
    before = mixture.load_E.float().std()
    for _ in range(150):
        optimizer.zero_grad()
        run(mixture, x)
        mixture.balance_loss.backward()
        optimizer.step()
    assert mixture.balance_loss.item() == pytest.approx(1, abs=0.05)
    assert mixture.load_E.float().std() < before / 2
