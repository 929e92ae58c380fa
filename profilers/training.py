"""The short training run that every quality task shares."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..builders.model import HybridLM

Batch = TypeVar("Batch")

WARM_UP_SHARE, FINAL_SHARE = 0.1, 0.1
BETAS, WEIGHT_DECAY, MAX_GRADIENT_NORM = (0.9, 0.95), 0.1, 1.0
BALANCE_WEIGHT = 0.01  # of the routers' loss, as in Switch Transformers (arXiv 2101.03961)


class NotFinite(ArithmeticError):
    """The loss or its gradient is no number any more."""


class OutOfTime(TimeoutError):
    """The deadline passed before the last step."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The loss of each step in nats, and the median time of a step."""

    losses: tuple[float, ...]
    seconds_per_step: float


def train(
    model: HybridLM,
    batches: Iterable[Batch],
    *,
    steps: int,
    learning_rate: float,
    loss_of: Callable[[Batch], Tensor],
    deadline: float,
) -> Trained:
    """Train `model` in place on the first `steps` batches; the schedule always finishes.

    AdamW with gradients clipped to norm 1; routers are balanced as they ask for. `deadline` is a
    moment of `time.monotonic`. Raises NotFinite, OutOfTime.
    """
    optimizer = torch.optim.AdamW(_groups(model), lr=learning_rate, betas=BETAS, fused=True)
    losses: list[float] = []
    moments = [time.monotonic()]
    for step, batch in zip(range(steps), batches, strict=False):
        if moments[-1] > deadline:
            raise OutOfTime(f"the time limit passed at step {step} of {steps}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        optimizer.zero_grad()
        loss = loss_of(batch)
        (loss + BALANCE_WEIGHT * model.balance_loss()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        loss_nats, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not math.isfinite(loss_nats + norm_value):
            raise NotFinite(
                f"step {step} of {steps}: the loss is {loss_nats}, its gradient's norm {norm_value}"
            )
        optimizer.step()
        model.rebalance()
        losses.append(loss_nats)
        moments.append(time.monotonic())
    durations = [later - moment for moment, later in pairwise(moments)]
    return Trained(losses=tuple(losses), seconds_per_step=median(durations))


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: linear up, then half a cosine down to a tenth."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up + 1) / (steps - warm_up)
    return FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Matrices decay; gains, biases, rates and short convolutions do not."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and "conv" not in name
            (decayed if matrix else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]
