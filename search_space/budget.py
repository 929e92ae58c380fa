"""Budgets: solving the free width so that all candidates cost the same."""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, PositiveInt

from .accounting import flops_per_token, parameters
from .architecture import Architecture
from .document import Record

MAX_STEPS = 6


class Budget(Record):
    """A quantity that is equal for all candidates.

    The solver scales all fields that the space marks `free`: the width of a dense feed-forward, and
    `d_expert` such that the experts per token have that width together.
    """

    quantity: Literal["flops_per_token", "active_params", "total_params"] = "flops_per_token"
    """Quantity that is held equal."""
    value: float = Field(gt=0, le=1e30)
    """Amount of the quantity."""
    tolerance: float = Field(default=0.02, gt=0, lt=1)
    """Largest relative deviation from `value`."""
    context: PositiveInt = 4096
    """Context length at which FLOPs are counted."""
    multiple_of: PositiveInt = 16
    """Granularity of the free width."""


class Unreachable(ValueError):
    """No width is within the budget's tolerance; the message has the nearest one."""


def cost(architecture: Architecture, budget: Budget) -> float:
    """The budgeted quantity of an architecture."""
    match budget.quantity:
        case "flops_per_token":
            return flops_per_token(architecture, budget.context)
        case "active_params":
            return parameters(architecture).active
        case "total_params":
            return parameters(architecture).total


def solve(budget: Budget, at_width: Callable[[int], Architecture]) -> Architecture:
    """The architecture whose free width meets the budget; `at_width(w)` builds it at a width.

    The quantity is linear in the width up to the rounding of d_expert, so a few secant steps
    suffice. Raises Unreachable.
    """
    step = budget.multiple_of
    low, high = 64 * step, 128 * step
    slope = (cost(at_width(high), budget) - cost(at_width(low), budget)) / (high - low)
    if slope <= 0:
        raise Unreachable(f"budget {budget.quantity}={budget.value:g}: no free width changes it")
    width, best_off, best = low, math.inf, at_width(low)
    for _ in range(MAX_STEPS):
        candidate = at_width(width)
        off = cost(candidate, budget) / budget.value - 1
        if abs(off) < abs(best_off):
            best_off, best = off, candidate
        following = max(step, width - step * round(off * budget.value / slope / step))
        if following == width:
            break
        width = following
    if abs(best_off) > budget.tolerance:
        raise Unreachable(
            f"budget {budget.quantity}={budget.value:.4g}: the nearest free width, {width}, "
            f"misses it by {best_off:+.1%}, tolerance {budget.tolerance:.1%}"
        )
    return best
