"""Fits constants and a smoother on timings of the device at hand, on top of what is shipped."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from ..device import Device, device
from .model import FamilyModel, Local, Model, Smoother, constants_for, matern
from .tables import Timing
from .work import SMOOTH, Constants, Work, cost_class, features, seconds, work

COVERAGE = 0.9
# Where to look for constants that timings do not decide, and how far from there they may lie (log).
GUESS = Constants(compute=0.6, memory=0.7, overhead_us=5.0, step_us=2.5, cache_gbps=30.0).log()
LOOSE, NEAR = np.array([0.7, 0.5, 1.5, 1.0, 0.7]), np.array([0.35, 0.35, 0.5, 0.5, 0.5])
SHARES = (0.0, 0.35, 0.7, 1.0)
MIN_POINTS = 10  # without which nothing from elsewhere is put to the test
AGREEMENT = 0.97  # of the error without it, that anything learned must stay below


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The timings of one operator family as arrays, n rows."""

    timings: Sequence[Timing]
    device: np.ndarray  # names
    gpu_family: np.ndarray
    cost_class: np.ndarray
    asked: Work
    columns: np.ndarray
    log_seconds: np.ndarray

    @classmethod
    def of(cls, timings: Sequence[Timing], here: Device | None = None) -> "Sample":
        """`here`: the device of all of them as its driver reports it, in place of its row."""

        def at(name: str) -> Device:
            return here or device(name)

        names = np.array([timing.device for timing in timings])
        order = np.argsort(names, kind="stable")
        parts = []
        for name in np.unique(names):
            calls = [timings[i].operator for i in order if timings[i].device == name]
            asked = work(calls, at(name))
            parts.append((asked, features(calls, asked, at(name))))
        ordered = [timings[i] for i in order]
        return cls(
            timings=ordered,
            device=names[order],
            gpu_family=np.array([at(name).family for name in names[order]]),
            cost_class=np.array([cost_class(timing.operator) for timing in ordered]),
            asked=Work.joined([asked for asked, _ in parts]),
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
    asked: Work, log_seconds: np.ndarray, guess: np.ndarray, reach: np.ndarray
) -> Constants:
    """The constants that explain the times best in log with soft L1, near a guess where they
    do not matter; the guess weighs as much as one timing."""

    def errors(logs: np.ndarray) -> np.ndarray:
        found = np.log(seconds(asked, Constants.from_log(logs))) - log_seconds
        return np.concatenate([found, 0.1 * (logs - guess) / reach])

    best = least_squares(errors, guess, loss="soft_l1", f_scale=0.1)
    return Constants.from_log(best.x)


def conformal(errors: np.ndarray) -> float:
    """The half-width in log that covers 90% of new calls (Vovk et al., split conformal); NaN is no
    error, and what is said of no errors."""
    errors = np.sort(np.abs(errors[np.isfinite(errors)]))
    if not len(errors):
        return math.nan
    rank = int(np.ceil(COVERAGE * (len(errors) + 1)))
    return float(errors[min(rank, len(errors)) - 1])


def calibrated(model: Model, target: Device, timings: Sequence[Timing]) -> Model:
    """The model with a fit on timings of the device at hand, 30 or 100 of each class.

    Classes that were not timed, and those with fewer than MIN_POINTS timings, stay as they were.
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
        widen=model.widen,
        local={**model.local, target.name: {**model.local.get(target.name, {}), **local}},
    )


def calibrated_class(
    model: FamilyModel, target: Device, sample: Sample, name: str, points: np.ndarray
) -> Local:
    """Constants near those known before, as much of the residual as helps, and a smoother.

    The residual is believed in part or in whole where the points agree with it better than with
    physics alone. The interval is that of leaving each point out once.
    """
    asked, columns, true = sample.asked[points], sample.columns[points], sample.log_seconds[points]
    before, _ = constants_for(model.constants[name], target)
    residual = model.residual(columns, target)

    def attempt(share: float) -> tuple[float, float, Constants, np.ndarray]:
        constants = fit_constants(asked, true - share * residual, before.log(), NEAR)
        left = true - share * residual - np.log(seconds(asked, constants))
        return float(np.abs(left).mean()), share, constants, left

    tried = [attempt(share) for share in SHARES]
    error, share, constants, left = min(tried, key=lambda result: result[0])
    if error > AGREEMENT * tried[0][0]:
        _, share, constants, left = tried[0]
    kind = type(sample.timings[points[0]].operator)
    smoother, left = smoothed(np.column_stack([columns, residual]), left, SMOOTH[kind])
    freedom = math.sqrt(len(points) / max(1, len(points) - len(GUESS)))
    return Local(
        constants=constants, share=share, spread=freedom * conformal(left), smoother=smoother
    )


def smoothed(
    columns: np.ndarray, left: np.ndarray, smooth: int
) -> tuple[Smoother | None, np.ndarray]:
    """The process through what is left that foretells left-out points best, and its errors there.

    None where no process foretells them better than nothing does.
    """
    chosen = np.array([*range(smooth), columns.shape[1] - 1])
    center, scale = columns[:, chosen].mean(axis=0), columns[:, chosen].std(axis=0) + 1e-6
    scale *= math.sqrt(len(chosen)) / 2
    best, best_errors = None, left
    plain = Smoother(
        chosen=chosen, center=center, scale=scale, length=1.0, points=left[:0], weights=left[:0]
    )
    points = plain.placed(columns)
    for length in (1.0, 2.0, 4.0, 8.0):
        for noise in (0.05, 0.2, 0.6, 2.0):
            inverse = np.linalg.inv(matern(points, points, length) + noise * np.eye(len(left)))
            weights = inverse @ left
            errors = weights / np.diag(inverse)  # of leaving each point out
            if np.abs(errors).mean() < AGREEMENT * np.abs(best_errors).mean():
                best = replace(plain, length=length, points=points, weights=weights)
                best_errors = errors
    return best, best_errors
