"""The fit of the cost model on timings: constants of the roofline, residuals, intervals.

Intervals come from calls that the fit has not seen: sites are assigned to cross-validation folds,
and for a device of an unknown GPU family that whole family is held out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from ...search_space.operators import Operator
from ..device import device
from .composed import Scenario, compose
from .local_fit import FRACTIONS, PRIOR, WIDE, Sample, calibrated_class, conformal, fit_constants
from .model import POOLED_FRACTION, PROVENANCES, FamilyModel, Model, Provenance, half_width_of_sum
from .tables import Timing
from .trees import Bins, Trees, exported
from .work import Constants, seconds

FOLDS = 4
UNTESTED = 0.5  # half-width in log where no held-out prediction could test a cost class
MAX_BINS = 64
OUTLIER = 4.0  # errors beyond this many median errors are clipped
POOLED_ROWS = 12_000  # drawn for the pooled residual at most


def fit_family(sample: Sample, chosen: np.ndarray, *, own: bool = True) -> FamilyModel:
    """The fit on the `chosen` rows of a sample: constants, the pooled residual of all GPU families,
    and with `own` the residual of each. Its half-widths are empty."""
    constants: dict[str, dict[str, Constants]] = {}
    roofline = np.zeros(len(sample.log_seconds))
    for name, where, rows in sample.slices(chosen):
        found = fit_constants(sample.work[rows], sample.log_seconds[rows], PRIOR, WIDE)
        constants.setdefault(name, {})[where] = found
        roofline[rows] = np.log(seconds(sample.work[rows], found))
    rest = sample.log_seconds - roofline
    members = {
        str(family): tuple(
            np.unique(sample.device[chosen & (sample.gpu_family == family)]).tolist()
        )
        for family in np.unique(sample.gpu_family[chosen])
    }
    bins = Bins.of(sample.columns[chosen], MAX_BINS)
    binned = np.column_stack([_device_indices(sample, members), bins(sample.columns)])
    (rows,) = np.nonzero(chosen)
    if len(rows) > POOLED_ROWS:
        rows = np.random.default_rng(0).choice(rows, POOLED_ROWS, replace=False)
    without_device = binned.copy()
    without_device[:, 0] = 0
    pooled = boosted(without_device[rows], rest[rows], trees=150, leaves=15, min_leaf=60)
    rest -= POOLED_FRACTION * pooled(without_device)
    return FamilyModel(
        constants=constants,
        bins=bins,
        pooled=pooled,
        own={
            family: _own_residual(binned, rest, chosen & (sample.gpu_family == family))
            for family in (members if own else ())
        },
        members=members,
        residual_fraction=1.0,
        half_widths={name: {} for name in constants},
    )


def _device_indices(sample: Sample, members: Mapping[str, Sequence[str]]) -> np.ndarray:
    indices = {name: i for names in members.values() for i, name in enumerate(names)}
    return np.array([indices.get(name, 0) for name in sample.device], np.uint8)


def _own_residual(binned: np.ndarray, rest: np.ndarray, chosen: np.ndarray) -> Trees:
    """The residual of one GPU family, fitted twice: outliers of the first fit are clipped."""
    rows = int(chosen.sum())
    trees, leaves = int(np.clip(rows / 15, 60, 450)), 31 if rows > 2000 else 15
    inputs, target = binned[chosen], rest[chosen]
    rough = boosted(inputs, target, trees=min(trees, 150), leaves=leaves, min_leaf=10)(inputs)
    reach = OUTLIER * float(np.median(np.abs(target - rough)))
    target = rough + np.clip(target - rough, -reach, reach)
    return boosted(inputs, target, trees=trees, leaves=leaves, min_leaf=10)


def boosted(
    binned: np.ndarray, target: np.ndarray, *, trees: int, leaves: int, min_leaf: int
) -> Trees:
    """Gradient-boosted trees on binned inputs [n, f], least squares."""
    model = HistGradientBoostingRegressor(
        max_iter=trees,
        learning_rate=0.06,
        max_leaf_nodes=leaves,
        min_samples_leaf=min_leaf,
        max_features=0.5,
        early_stopping=False,  # pyright: ignore[reportArgumentType]  # a bool or 'auto'
        random_state=0,
    )
    return exported(model.fit(binned.astype(np.float32), target))


def predicted(model: FamilyModel, sample: Sample, chosen: np.ndarray) -> np.ndarray:
    """The log seconds that a model predicts for the chosen rows, [n]; NaN elsewhere."""
    found = np.full(len(sample.log_seconds), np.nan)
    for name, where, rows in sample.slices(chosen):
        if name in model.constants:
            found[rows], _ = model.log_seconds(
                name, sample.work[rows], sample.columns[rows], device(where)
            )
    return found


def assign_folds(timings: Iterable[Timing], folds: int, seed: int = 0) -> dict[tuple, int]:
    """A cross-validation fold for every (operator, site), evenly within each operator."""
    sites: dict[str, set] = {}
    for timing in timings:
        sites.setdefault(timing.operator.name, set()).add(timing.site)
    rng = np.random.default_rng(seed)
    return {
        (kind, site): int(position) % folds
        for kind, found in sorted(sites.items())
        for site, position in zip(sorted(found, key=repr), rng.permutation(len(found)), strict=True)
    }


def fold_of(timings: Sequence[Timing], folds: Mapping[tuple, int]) -> np.ndarray:
    """The fold of each timing, [n]."""
    return np.array([folds[timing.operator.name, timing.site] for timing in timings])


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Predictions of calls whose site, device or GPU family the fit had not seen.

    Aligned with the timings of one operator family; `log_seconds` is NaN where none was predicted.
    """

    provenance: Provenance
    timings: Sequence[Timing]
    log_seconds: np.ndarray
    half_width: np.ndarray


def fit(timings: Sequence[Timing], *, own: bool = True, processes: int = 1) -> Model:
    """Fit the cost model on timings, with tested intervals.

    Without `own` the residuals of single GPU families are left out, in a fraction of the time: the
    model then serves only devices of other families. `processes` families are fitted at once.
    """
    families: dict[str, list[Timing]] = {}
    for timing in timings:
        families.setdefault(timing.operator.family, []).append(timing)
    largest_first = sorted(families.values(), key=len, reverse=True)
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            fitted = list(pool.map(fit_and_test, largest_first, repeat(own)))
    else:
        fitted = [fit_and_test(part, own) for part in largest_first]
    models = {
        part[0].operator.family: model
        for part, (model, _) in zip(largest_first, fitted, strict=True)
    }
    tests = [held_out for _, found in fitted for held_out in found]
    return Model(families=_without_gaps(models), inflation=inflation_factors(tests))


def fit_and_test(timings: Sequence[Timing], own: bool) -> tuple[FamilyModel, list[HeldOut]]:
    """The fit of one operator family with tested half-widths, and the held-out predictions."""
    sample = Sample.of(timings)
    model = fit_family(sample, np.ones(len(timings), bool), own=own)

    folds = fold_of(sample.timings, assign_folds(sample.timings, FOLDS))
    fitted = np.full(len(timings), np.nan)
    for fold in range(FOLDS if own else 0):
        inside = folds == fold
        fitted[inside] = predicted(fit_family(sample, ~inside), sample, inside)[inside]

    relative = np.full(len(timings), np.nan)
    for family, names in model.members.items():
        if own and len(names) > 1:
            inside = sample.device == names[0]
            others = fit_family(sample, (sample.gpu_family == family) & ~inside)
            relative[inside] = predicted(others, sample, inside)[inside]

    elsewhere = {
        family: fit_family(sample, sample.gpu_family != family, own=False)
        for family in (model.members if len(model.members) > 1 else ())
    }
    transferred = {fraction: np.full(len(timings), np.nan) for fraction in FRACTIONS}
    for family, others in elsewhere.items():
        inside = sample.gpu_family == family
        for fraction, found in transferred.items():
            model_of_others = replace(others, residual_fraction=fraction)
            found[inside] = predicted(model_of_others, sample, inside)[inside]
    fraction = min(FRACTIONS, key=lambda fraction: _family_error(sample, transferred[fraction]))

    by_provenance: dict[Provenance, np.ndarray] = {
        "fitted": fitted,
        "family": relative,
        "transferred": transferred[fraction],
    }
    half_widths = {
        name: _half_widths(sample, by_provenance, name)
        for name in np.unique(sample.cost_class).tolist()
    }
    tests = [_held_out(sample, name, logs, half_widths) for name, logs in by_provenance.items()]
    if elsewhere:
        tests.append(_held_out_calibration(sample, elsewhere))
    return replace(model, residual_fraction=fraction, half_widths=half_widths), tests


def _held_out(
    sample: Sample,
    provenance: Provenance,
    log_seconds: np.ndarray,
    half_widths: Mapping[str, Mapping[str, float]],
) -> HeldOut:
    half_width = np.full(len(log_seconds), np.nan)
    for name, where, rows in sample.slices(np.isfinite(log_seconds)):
        half_width[rows] = half_widths[name][where if provenance == "fitted" else provenance]
    return HeldOut(
        provenance=provenance,
        timings=sample.timings,
        log_seconds=log_seconds,
        half_width=half_width,
    )


def _held_out_calibration(sample: Sample, elsewhere: Mapping[str, FamilyModel]) -> HeldOut:
    """Predictions for one device of each GPU family, calibrated on 100 of its points per class on
    top of the fit of the other families."""
    logs, half_width = (np.full(len(sample.log_seconds), np.nan) for _ in range(2))
    rng = np.random.default_rng(0)
    for family, others in elsewhere.items():
        where = sample.device[sample.gpu_family == family][0]
        for name, _, rows in sample.slices(sample.device == where):
            points = rng.choice(rows, min(100, len(rows) // 2), replace=False)
            rest = np.setdiff1d(rows, points)
            if name in others.constants:
                local = calibrated_class(others, device(where), sample, name, points)
                logs[rest], _ = others.log_seconds(
                    name, sample.work[rest], sample.columns[rest], device(where), local
                )
                half_width[rest] = local.half_width
    return HeldOut(
        provenance="calibrated",
        timings=sample.timings,
        log_seconds=logs,
        half_width=half_width,
    )


def _family_error(sample: Sample, log_seconds: np.ndarray) -> float:
    """The mean over GPU families of their mean errors."""
    errors = np.abs(log_seconds - sample.log_seconds)
    means = [
        np.nanmean(errors[sample.gpu_family == family])
        for family in np.unique(sample.gpu_family)
        if np.isfinite(errors[sample.gpu_family == family]).any()
    ]
    return float(np.mean(means)) if means else 0.0


def _half_widths(
    sample: Sample, by_provenance: Mapping[Provenance, np.ndarray], name: str
) -> dict[str, float]:
    """Half-widths of one cost class, by device where it was timed, else by provenance."""
    inside = sample.cost_class == name
    found: dict[str, float] = {}
    for where in np.unique(sample.device[inside]).tolist():
        found[where] = conformal(
            (by_provenance["fitted"] - sample.log_seconds)[inside & (sample.device == where)]
        )
    for provenance in ("family", "transferred"):
        found[provenance] = conformal((by_provenance[provenance] - sample.log_seconds)[inside])
    return {key: half_width for key, half_width in found.items() if math.isfinite(half_width)}


def _without_gaps(models: Mapping[str, FamilyModel]) -> dict[str, FamilyModel]:
    """The fits with the half-widths that no held-out prediction gave.

    A cost class that was timed on one GPU family only takes the largest "transferred" half-width of
    the other classes; one without two devices of a family takes its "transferred" for "family".
    """
    known = [widths for model in models.values() for widths in model.half_widths.values()]
    worst = max((widths.get("transferred", 0.0) for widths in known), default=0.0) or UNTESTED
    filled = {}
    for family, model in models.items():
        widths = {
            name: {"transferred": worst, **found} for name, found in model.half_widths.items()
        }
        widths = {name: {"family": found["transferred"], **found} for name, found in widths.items()}
        filled[family] = replace(model, half_widths=widths)
    return filled


def inflation_factors(tests: Sequence[HeldOut]) -> dict[Provenance, float]:
    """Factors by which the half-width of a sum covers 90% of composed architectures."""
    found: dict[Provenance, float] = {}
    for provenance in PROVENANCES:
        chosen = [held_out for held_out in tests if held_out.provenance == provenance]
        errors = [
            abs(math.log(predicted_s / true_s)) / half_width
            for predicted_s, true_s, half_width, _ in sums(chosen, provenance, each=12)
        ]
        found[provenance] = conformal(np.array(errors)) if len(errors) > 50 else 1.0
    return found


def sums(
    tests: Sequence[HeldOut], provenance: Provenance, each: int
) -> Iterator[tuple[float, float, float, tuple[str, Scenario]]]:
    """Composed architectures, `each` per device and scenario.

    Of each: predicted and true seconds, the half-width in log, (device, scenario).
    """
    calls: dict[str, list[tuple[Operator, float, float, float]]] = {}
    for held_out in tests:
        for i in np.nonzero(np.isfinite(held_out.log_seconds))[0].tolist():
            timing, predicted_s = held_out.timings[i], math.exp(held_out.log_seconds[i])
            row = timing.operator, predicted_s, timing.seconds, float(held_out.half_width[i])
            calls.setdefault(timing.device, []).append(row)
    for where, known in sorted(calls.items()):
        operators = [call for call, *_ in known]
        predicted_s, true_s, half_widths = (np.array([row[i] for row in known]) for i in (1, 2, 3))
        for scenario, drawn in compose(operators, np.random.default_rng(0), each):
            indices, counts = np.array(list(drawn)), np.array(list(drawn.values()))
            half_width = half_width_of_sum(
                counts * predicted_s[indices],
                half_widths[indices],
                (provenance,) * len(indices),
                [operators[i].family for i in indices],
            )
            total = float(counts @ predicted_s[indices]), float(counts @ true_s[indices])
            yield *total, half_width, (where, scenario)
