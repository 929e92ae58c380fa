"""The mean over seeds with its Student-t interval."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

# 95th percentile of Student's t for 1, 2, ... degrees of freedom; beyond them its expansion in
# 1/n (Abramowitz and Stegun 26.7.5).
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
T_95_EXPANSION = (1.6449, 1.5238, 1.4203)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(mean, low, high) with the 90% interval of the mean, which a single value does not have."""
    center = mean(values)
    if len(values) == 1:
        return center, None, None
    half_width = student_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return center, center - half_width, center + half_width


def student_95(degrees_of_freedom: int) -> float:
    """The 95th percentile of Student's t distribution, within 0.001."""
    if degrees_of_freedom <= len(T_95):
        return T_95[degrees_of_freedom - 1]
    return sum(term / degrees_of_freedom**power for power, term in enumerate(T_95_EXPANSION))
