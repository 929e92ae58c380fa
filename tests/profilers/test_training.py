"""The training loop: it learns, is deterministic bit by bit, pauses, and ends in time."""

import math
import time
from itertools import repeat

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archfront.builders.model import HybridLM, build
from archfront.profilers.training import NotFinite, OutOfTime, Training, schedule

FAR = time.monotonic() + 3600
TOKENS_BT = torch.arange(48).view(2, 24) % 7


def model_of(architecture, pattern: str = "*-") -> HybridLM:
    return build(architecture(pattern), seed=0)


def next_token_loss(model: HybridLM):
    def loss_of(tokens_BT: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens_BT[:, :-1]).mT, tokens_BT[:, 1:])

    return loss_of


def training_of(model: HybridLM, steps: int = 12, deadline: float = FAR) -> Training[Tensor]:
    return Training(
        model,
        repeat(TOKENS_BT),
        steps=steps,
        learning_rate=4e-3,
        loss_of=next_token_loss(model),
        deadline=deadline,
    )


def trained(model: HybridLM, steps: int = 12, deadline: float = FAR) -> Training[Tensor]:
    training = training_of(model, steps, deadline)
    training.advance(1.0)
    return training


def test_it_memorizes_a_sequence(architecture):
    losses = trained(model_of(architecture), steps=30).losses
    assert len(losses) == 30
    assert losses[0] == pytest.approx(math.log(256), abs=0.2)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("pattern", ["*-", "G-", "M-", "*E"])
def test_the_same_run_gives_the_same_losses_and_weights(architecture, pattern: str):
    first, second = model_of(architecture, pattern), model_of(architecture, pattern)
    assert trained(first, steps=4).losses == trained(second, steps=4).losses
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def test_the_learning_rate_rises_for_a_tenth_and_ends_at_a_tenth():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("pattern", ["*-", "M-", "*E"])
def test_a_run_in_parts_equals_the_run_at_once(architecture, pattern: str):
    at_once, in_parts = model_of(architecture, pattern), model_of(architecture, pattern)
    losses = trained(at_once, steps=6).losses
    training = training_of(in_parts, steps=6)
    for fraction, taken in ((0.01, 1), (0.5, 3), (0.5, 3), (1.0, 6)):
        training.advance(fraction)
        assert training.losses == losses[:taken]
        in_parts.eval()
    for name, weight in at_once.state_dict().items():
        assert torch.equal(weight, in_parts.state_dict()[name]), name


def test_the_time_between_two_parts_counts_for_no_step(architecture):
    training = training_of(model_of(architecture), steps=2)
    training.advance(0.5)
    time.sleep(0.5)
    training.advance(1.0)
    assert training.seconds_per_step < 0.25


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_few_steps_exists(steps: int):
    assert all(0.1 <= schedule(step, steps) <= 1 for step in range(steps))


def test_weight_decay_is_on_matrices_only(architecture):
    model = model_of(architecture)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    Training(
        model,
        repeat(TOKENS_BT),
        steps=3,
        learning_rate=1e-2,
        loss_of=lambda tokens_BT: 0 * model(tokens_BT).mean(),
        deadline=FAR,
    ).advance(1.0)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (weight.ndim == 1), name


def test_a_loss_that_is_not_finite_names_its_step(architecture):
    model = model_of(architecture)
    losses = iter([1.0, 1.0, math.nan, 1.0])
    with pytest.raises(NotFinite, match="step 2 of 4: the loss is nan"):
        Training(
            model,
            repeat(TOKENS_BT),
            steps=4,
            learning_rate=1e-3,
            loss_of=lambda tokens_BT: next(losses) * model(tokens_BT).mean(),
            deadline=FAR,
        ).advance(1.0)


def test_a_gradient_that_is_not_finite_is_found_in_the_same_step(architecture):
    model = model_of(architecture)
    with pytest.raises(
        NotFinite, match=r"step 0 of 1: the loss is 0\.0, the norm of its gradient nan"
    ):
        Training(
            model,
            repeat(TOKENS_BT),
            steps=1,
            learning_rate=1e-3,
            loss_of=lambda tokens_BT: (model(tokens_BT).mean() * 0).abs().sqrt(),
            deadline=FAR,
        ).advance(1.0)


def test_the_deadline_ends_a_run(architecture):
    with pytest.raises(OutOfTime, match="at step 0 of 12"):
        trained(model_of(architecture), deadline=time.monotonic() - 1)


def test_a_router_with_a_correction_bias_is_balanced_by_it(architecture):
    expert = {"kind": "moe", "n_experts": 4, "top_k": 1, "d_expert": 32, "router": "sigmoid_bias"}
    model = build(architecture("*E", blocks={"E": expert}), seed=0)
    trained(model, steps=3)
    assert model.get_buffer("blocks.1.body.correction_bias").abs().max() > 0
