"""Pareto fronts: admission, hypervolume, knee.

Values are arrays [candidates, objectives] in natural units. `signs` turns every objective into one
to be minimized: +1 where lower is better, -1 where higher is. A candidate dominates another when
it is worse in no objective and better in at least one, so candidates of equal values share a front.
Raises ValueError for values that are not finite or of another number of objectives.
"""

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# The reference lies behind the worst values, so that extreme points count: by 1 / H of the span,
# here a tenth, as Ishibuchi et al. 2018 (Evolutionary Computation 26(3)) have it for a front of
# eleven points per side.
SLACK = 0.1
# How far past the best early values a search may still improve before the volume saturates.
ROOM = 0.5


def admit(
    front: ArrayLike, point: Sequence[float], signs: Sequence[int]
) -> tuple[bool, NDArray[np.bool_]]:
    """Whether `point` enters a front, and which of the front's points leave.

    `front` [N, M] are points of which none dominates another; the mask is [N].
    """
    costs, cost = _costs(front, signs), _costs([point], signs)
    nowhere_worse = np.all(cost <= costs, axis=1)
    nowhere_better = np.all(cost >= costs, axis=1)
    enters = not np.any(nowhere_better & ~nowhere_worse)
    return enters, nowhere_worse & ~nowhere_better


def box(values: ArrayLike, signs: Sequence[int]) -> tuple[list[float], list[float]]:
    """The ideal and the reference point between which a study's hypervolume is measured.

    From the first candidates' best and worst of each objective: the reference lies `SLACK` of their
    span behind the worst, the ideal `ROOM` of it beyond the best, but at zero where that would
    change the sign. Volumes are comparable within one box only: make it once and keep it. Raises
    ValueError for no candidates.
    """
    signs_M, costs = np.asarray(signs, dtype=float), _costs(values, signs)
    if not len(costs):
        raise ValueError("a box needs the values of at least one candidate, got none")
    best, worst = costs.min(axis=0), costs.max(axis=0)
    span = worst - best
    span = np.where(span > 0, span, np.where(best != 0, np.abs(best), 1.0))
    ideal = best - ROOM * span
    ideal = np.where((best >= 0) & (ideal < 0), 0.0, ideal)
    reference = worst + SLACK * span
    return (signs_M * ideal).tolist(), (signs_M * reference).tolist()


def hypervolume(
    values: ArrayLike, signs: Sequence[int], ideal: Sequence[float], reference: Sequence[float]
) -> float:
    """The fraction of the box that the candidates dominate, 0 to 1.

    Values beyond the ideal count as equal to it; a candidate that is not better than the reference
    in every objective adds nothing.
    """
    low, high = _costs([ideal], signs)[0], _costs([reference], signs)[0]
    units = np.maximum((_costs(values, signs) - low) / (high - low), 0.0)
    inside = units[(units < 1).all(axis=1)]
    return (
        min(float(moocore.hypervolume(inside, ref=np.ones(len(signs)))), 1.0)
        if len(inside)
        else 0.0
    )


def knee(values: ArrayLike, signs: Sequence[int]) -> int:
    """Index of the front's knee: the point deepest below the plane through the front's extremes.

    With each objective scaled to 0..1 over the front, that plane is the chord of Das 1999 ("On
    characterizing the knee of the Pareto curve", Structural Optimization 18) and the deepest point
    is that of the smallest sum (Chiu, Yen and Juan 2016, "Minimum Manhattan distance approach",
    IEEE Trans. Evolutionary Computation 20(6)). The first of equals. Raises ValueError for no
    candidates.
    """
    costs = _costs(values, signs)
    if not len(costs):
        raise ValueError("a knee needs the values of at least one candidate, got none")
    on_front = np.flatnonzero(moocore.is_nondominated(costs, keep_weakly=True))
    front = costs[on_front]
    span = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(span > 0, span, 1.0)
    return int(on_front[scaled.sum(axis=1).argmin()])


def _costs(values: ArrayLike, signs: Sequence[int]) -> Floats:
    """Values [N, M] with every objective turned to lower is better. Raises ValueError."""
    costs = np.asarray(values, dtype=float)
    if not costs.size:
        return np.zeros((0, len(signs)))
    if costs.ndim != 2 or costs.shape[1] != len(signs):
        raise ValueError(
            f"values must be [candidates, {len(signs)} objectives], got {list(costs.shape)}"
        )
    if not np.isfinite(costs).all():
        raise ValueError("values must be finite: NaN dominates nothing and is dominated by nothing")
    return costs * np.asarray(signs, dtype=float)
