"""The training loop that all quality tasks share."""

import math
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..builders.model import HybridLM

Batch = TypeVar("Batch")

WARM_UP_FRACTION, FINAL_FRACTION = 0.1, 0.1  # of the steps; of the peak learning rate
BETAS, WEIGHT_DECAY, MAX_GRADIENT_NORM = (0.9, 0.95), 0.1, 1.0
BALANCE_WEIGHT = 0.01  # of the routers' loss, as in Switch Transformers (arXiv 2101.03961)


class NotFinite(ArithmeticError):
    """The loss or the norm of its gradient is not finite."""


class OutOfTime(TimeoutError):
    """The deadline passed before the last step."""


class Training(Generic[Batch]):
    """One training run of `model`, in place, that can stop at any step and go on later.

    AdamW with gradients clipped to norm 1 and the learning rate of `schedule`; routers are balanced
    by their loss or their bias. Each step takes the next of `batches`, so a run that stopped in
    between reads the same data and ends with the same weights as one that did not. `deadline` is a
    value of `time.monotonic`.
    """

    def __init__(
        self,
        model: HybridLM,
        batches: Iterable[Batch],
        *,
        steps: int,
        learning_rate: float,
        loss_of: Callable[[Batch], Tensor],
        deadline: float,
    ) -> None:
        self.model, self.batches, self.loss_of = model, iter(batches), loss_of
        self.steps, self.learning_rate, self.deadline = steps, learning_rate, deadline
        groups = _groups(model)
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
        self.losses: list[float] = []
        self._step_seconds: list[float] = []

    @property
    def seconds_per_step(self) -> float:
        """The median over the steps taken so far."""
        return median(self._step_seconds)

    def advance(self, fraction: float) -> None:
        """Train up to `fraction` of the run's steps, rounded to a step, at least the first.

        `losses` has the nats of every step taken. Raises NotFinite, OutOfTime.
        """
        self.model.train()
        until = max(1, round(fraction * self.steps))
        now = time.monotonic()
        while len(self.losses) < until:
            if now > self.deadline:
                raise OutOfTime(f"the time limit passed at step {len(self.losses)} of {self.steps}")
            self._step()
            start, now = now, time.monotonic()
            self._step_seconds.append(now - start)

    def _step(self) -> None:
        step = len(self.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(step, self.steps)
        self.optimizer.zero_grad()
        loss = self.loss_of(next(self.batches))
        (loss + BALANCE_WEIGHT * self.model.balance_loss()).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        loss_nats, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not math.isfinite(loss_nats + norm_value):
            raise NotFinite(
                f"step {step} of {self.steps}: the loss is {loss_nats}, "
                f"the norm of its gradient {norm_value}"
            )
        self.optimizer.step()
        self.model.rebalance()
        self.losses.append(loss_nats)


def schedule(step: int, steps: int) -> float:
    """The fraction of the peak learning rate: linear warm-up, then a half cosine to a tenth."""
    warm_up = max(1, round(WARM_UP_FRACTION * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up + 1) / (steps - warm_up)
    return FINAL_FRACTION + (1 - FINAL_FRACTION) * (1 + math.cos(math.pi * done)) / 2


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Weight decay on matrices; none on gains, biases, rates and short convolutions."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and "conv" not in name
            (decayed if matrix else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]
