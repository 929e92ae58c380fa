"""The local fit: constants and a smoother on timings of one device, on top of the shipped model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from ..device import Device, device
from .model import FamilyModel, Local, Model, Smoother, constants_for, matern
from .tables import Timing
from .work import SMOOTH, Constants, Work, cost_class, features, seconds, work_of

COVERAGE = 0.9
# The prior of constants in log: its center, and its width for a first fit and for a local one.
PRIOR = Constants(compute=0.6, memory=0.7, overhead_us=5.0, step_us=2.5, cache_gbps=30.0).log()
WIDE, NARROW = np.array([0.7, 0.5, 1.5, 1.0, 0.7]), np.array([0.35, 0.35, 0.5, 0.5, 0.5])
FRACTIONS = (0.0, 0.35, 0.7, 1.0)  # of a residual, from which a fit chooses
MIN_POINTS = 10  # timings of a class that a local fit needs
IMPROVEMENT = 0.97  # of the error without a term: where the error with it is higher, it is left out


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The timings of one operator family as arrays, n rows."""

    timings: Sequence[Timing]
    device: np.ndarray  # names
    gpu_family: np.ndarray
    cost_class: np.ndarray
    work: Work
    columns: np.ndarray
    log_seconds: np.ndarray

    @classmethod
    def of(cls, timings: Sequence[Timing], here: Device | None = None) -> "Sample":
        """The arrays of timings; `here` is the device of all of them, in place of its row."""

        def at(name: str) -> Device:
            return here or device(name)

        names = np.array([timing.device for timing in timings])
        order = np.argsort(names, kind="stable")
        parts = []
        for name in np.unique(names):
            calls = [timings[i].operator for i in order if timings[i].device == name]
            work = work_of(calls, at(name))
            parts.append((work, features(calls, work, at(name))))
        ordered = [timings[i] for i in order]
        return cls(
            timings=ordered,
            device=names[order],
            gpu_family=np.array([at(name).family for name in names[order]]),
            cost_class=np.array([cost_class(timing.operator) for timing in ordered]),
            work=Work.joined([work for work, _ in parts]),
            columns=np.concatenate([columns for _, columns in parts]),
            log_seconds=np.log([timing.seconds for timing in ordered]),
        )

    def slices(self, chosen: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
        """Cost class, device and rows of every slice of the chosen rows."""
        for name in np.unique(self.cost_class[chosen]):
            for where in np.unique(self.device[chosen & (self.cost_class == name)]):
                yield (
                    str(name),
                    str(where),
                    np.nonzero(chosen & (self.cost_class == name) & (self.device == where))[0],
                )


def fit_constants(
    work: Work, log_seconds: np.ndarray, prior: np.ndarray, width: np.ndarray
) -> Constants:
    """The constants with the least soft-L1 error of log times.

    `prior` (constants in log) keeps those that the timings do not determine: a constant one `width`
    away from it costs as much as an error of 0.1 in one timing.
    """

    def errors(logs: np.ndarray) -> np.ndarray:
        found = np.log(seconds(work, Constants.from_log(logs))) - log_seconds
        return np.concatenate([found, 0.1 * (logs - prior) / width])

    best = least_squares(errors, prior, loss="soft_l1", f_scale=0.1)
    return Constants.from_log(best.x)


def conformal(errors: np.ndarray) -> float:
    """The half-width that covers 90% of new calls, from errors of calls outside the fit.

    Split conformal prediction (Vovk et al., Algorithmic Learning in a Random World, 2005): the
    ceil(0.9 (n + 1))-th smallest of n absolute errors. NaNs are left out; NaN where none are left.
    """
    errors = np.sort(np.abs(errors[np.isfinite(errors)]))
    if not len(errors):
        return math.nan
    rank = int(np.ceil(COVERAGE * (len(errors) + 1)))
    return float(errors[min(rank, len(errors)) - 1])


def calibrated(model: Model, target: Device, timings: Sequence[Timing]) -> Model:
    """The model with a local fit on timings of the device `target`, 30 or 100 of each cost class.

    Cost classes with fewer than `MIN_POINTS` timings stay as they were.
    """
    families: dict[str, list[Timing]] = {}
    for timing in timings:
        families.setdefault(timing.operator.family, []).append(timing)
    local: dict[str, Local] = {}
    for family, part in families.items():
        sample = Sample.of([replace(timing, device=target.name) for timing in part], target)
        for name, _, rows in sample.slices(np.ones(len(part), bool)):
            if len(rows) >= MIN_POINTS:
                known = model.family(family, name, target)
                local[name] = calibrated_class(known, target, sample, name, rows)
    return Model(
        families=model.families,
        inflation=model.inflation,
        local={**model.local, target.name: {**model.local.get(target.name, {}), **local}},
    )


def calibrated_class(
    model: FamilyModel, target: Device, sample: Sample, name: str, points: np.ndarray
) -> Local:
    """The local fit of one cost class on the rows `points` of the sample.

    Constants near those of the model, the fraction of its residual that lowers the error most (0
    where none does by `IMPROVEMENT`), and a smoother. The half-width is conformal on leave-one-out
    errors, scaled by the degrees of freedom of the constants.
    """
    work, columns, true = sample.work[points], sample.columns[points], sample.log_seconds[points]
    before, _ = constants_for(model.constants[name], target)
    residual = model.residual(columns, target)

    def attempt(fraction: float) -> tuple[float, float, Constants, np.ndarray]:
        constants = fit_constants(work, true - fraction * residual, before.log(), NARROW)
        rest = true - fraction * residual - np.log(seconds(work, constants))
        return float(np.abs(rest).mean()), fraction, constants, rest

    tried = [attempt(fraction) for fraction in FRACTIONS]
    error, fraction, constants, rest = min(tried, key=lambda result: result[0])
    if error > IMPROVEMENT * tried[0][0]:
        _, fraction, constants, rest = tried[0]
    kind = type(sample.timings[points[0]].operator)
    smoother, rest = smoothed(np.column_stack([columns, residual]), rest, SMOOTH[kind])
    freedom = math.sqrt(len(points) / max(1, len(points) - len(PRIOR)))
    return Local(
        constants=constants,
        residual_fraction=fraction,
        half_width=freedom * conformal(rest),
        smoother=smoother,
    )


def smoothed(
    columns: np.ndarray, rest: np.ndarray, smooth: int
) -> tuple[Smoother | None, np.ndarray]:
    """The Gaussian process through errors `rest` [n] with the least leave-one-out error, and its
    leave-one-out errors (Rasmussen and Williams, eq. 5.12); None and `rest` where none is better.

    Its inputs are the first `smooth` columns and the last one.
    """
    chosen = np.array([*range(smooth), columns.shape[1] - 1])
    center, scale = columns[:, chosen].mean(axis=0), columns[:, chosen].std(axis=0) + 1e-6
    scale *= math.sqrt(len(chosen)) / 2
    best, best_errors = None, rest
    plain = Smoother(
        chosen=chosen, center=center, scale=scale, length=1.0, points=rest[:0], weights=rest[:0]
    )
    points = plain.normalized(columns)
    for length in (1.0, 2.0, 4.0, 8.0):
        for noise in (0.05, 0.2, 0.6, 2.0):
            inverse = np.linalg.inv(matern(points, points, length) + noise * np.eye(len(rest)))
            weights = inverse @ rest
            errors = weights / np.diag(inverse)
            if np.abs(errors).mean() < IMPROVEMENT * np.abs(best_errors).mean():
                best = replace(plain, length=length, points=points, weights=weights)
                best_errors = errors
    return best, best_errors
