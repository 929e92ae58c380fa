"""Fits the cost model on timings: physics first, then what is left, then how sure it is.

Everything that is said about accuracy comes from calls whose site the fit has not seen: sites are
dealt into folds, and for a device of an unknown family whole GPU families are left out.
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
from .local_fit import GUESS, LOOSE, SHARES, Sample, calibrated_class, conformal, fit_constants
from .model import POOLED_SHARE, PROVENANCES, FamilyModel, Model, Provenance, spread_of_sum
from .tables import Timing
from .trees import Bins, Trees, exported
from .work import Constants, seconds

FOLDS = 4
UNTESTED = 0.5  # half-width in log of a class that no trial could test
MAX_BINS = 64
OUTLYING = 4.0  # times the median error
POOLED_ROWS = 12_000


def fit_family(sample: Sample, chosen: np.ndarray, *, own: bool = True) -> FamilyModel:
    """Constants, the residual that GPU families share, and with `own` what is left in each."""
    constants: dict[str, dict[str, Constants]] = {}
    physics = np.zeros(len(sample.log_seconds))
    for name, where, rows in sample.slices(chosen):
        found = fit_constants(sample.asked[rows], sample.log_seconds[rows], GUESS, LOOSE)
        constants.setdefault(name, {})[where] = found
        physics[rows] = np.log(seconds(sample.asked[rows], found))
    left = sample.log_seconds - physics
    members = {
        str(family): tuple(
            np.unique(sample.device[chosen & (sample.gpu_family == family)]).tolist()
        )
        for family in np.unique(sample.gpu_family[chosen])
    }
    bins = Bins.of(sample.columns[chosen], MAX_BINS)
    binned = np.column_stack([_places(sample, members), bins(sample.columns)])
    (rows,) = np.nonzero(chosen)
    if len(rows) > POOLED_ROWS:
        rows = np.random.default_rng(0).choice(rows, POOLED_ROWS, replace=False)
    placeless = binned.copy()
    placeless[:, 0] = 0
    pooled = boosted(placeless[rows], left[rows], trees=150, leaves=15, min_leaf=60)
    left -= POOLED_SHARE * pooled(placeless)
    return FamilyModel(
        constants=constants,
        bins=bins,
        pooled=pooled,
        own={
            family: _own_residual(binned, left, chosen & (sample.gpu_family == family))
            for family in (members if own else ())
        },
        members=members,
        share=1.0,
        spreads={name: {} for name in constants},
    )


def _places(sample: Sample, members: Mapping[str, Sequence[str]]) -> np.ndarray:
    places = {name: i for names in members.values() for i, name in enumerate(names)}
    return np.array([places.get(name, 0) for name in sample.device], np.uint8)


def _own_residual(binned: np.ndarray, left: np.ndarray, chosen: np.ndarray) -> Trees:
    """Fitted twice: timings far from the first fit were disturbed, and are drawn near for the
    second."""
    rows = int(chosen.sum())
    trees, leaves = int(np.clip(rows / 15, 60, 450)), 31 if rows > 2000 else 15
    inputs, target = binned[chosen], left[chosen]
    rough = boosted(inputs, target, trees=min(trees, 150), leaves=leaves, min_leaf=10)(inputs)
    reach = OUTLYING * float(np.median(np.abs(target - rough)))
    target = rough + np.clip(target - rough, -reach, reach)
    return boosted(inputs, target, trees=trees, leaves=leaves, min_leaf=10)


def boosted(
    binned: np.ndarray, target: np.ndarray, *, trees: int, leaves: int, min_leaf: int
) -> Trees:
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
    """Log seconds of the chosen rows; NaN elsewhere."""
    found = np.full(len(sample.log_seconds), np.nan)
    for name, where, rows in sample.slices(chosen):
        if name in model.constants:
            found[rows], _ = model.log_seconds(
                name, sample.asked[rows], sample.columns[rows], device(where)
            )
    return found


def dealt(timings: Iterable[Timing], folds: int, seed: int = 0) -> dict[tuple, int]:
    """A fold for every site, evenly within each kind of operator."""
    sites: dict[str, set] = {}
    for timing in timings:
        sites.setdefault(timing.operator.name, set()).add(timing.site)
    rng = np.random.default_rng(seed)
    return {
        (kind, site): int(place) % folds
        for kind, found in sorted(sites.items())
        for site, place in zip(sorted(found, key=repr), rng.permutation(len(found)), strict=True)
    }


def fold_of(timings: Sequence[Timing], folds: Mapping[tuple, int]) -> np.ndarray:
    return np.array([folds[timing.operator.name, timing.site] for timing in timings])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was foretold of calls whose site, device or GPU family the fit had not seen.

    Aligned with the timings of one operator family; `log_seconds` is NaN where nothing was.
    """

    provenance: Provenance
    timings: Sequence[Timing]
    log_seconds: np.ndarray
    spread: np.ndarray


def fit(timings: Sequence[Timing], *, own: bool = True, processes: int = 1) -> Model:
    """The cost model of all operator families that were timed, with tested intervals.

    Without `own` it serves only devices of other GPU families, and is fitted in a fraction of the
    time.
    """
    families: dict[str, list[Timing]] = {}
    for timing in timings:
        families.setdefault(timing.operator.family, []).append(timing)
    largest_first = sorted(families.values(), key=len, reverse=True)
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            fitted = list(pool.map(fit_and_try, largest_first, repeat(own)))
    else:
        fitted = [fit_and_try(part, own) for part in largest_first]
    models = {
        part[0].operator.family: model
        for part, (model, _) in zip(largest_first, fitted, strict=True)
    }
    trials = [trial for _, found in fitted for trial in found]
    return Model(families=_without_gaps(models), widen=widened(trials))


def fit_and_try(timings: Sequence[Timing], own: bool) -> tuple[FamilyModel, list[Trial]]:
    """The model of one operator family with tested spreads, and the trials that tested them."""
    sample = Sample.of(timings)
    model = fit_family(sample, np.ones(len(timings), bool), own=own)

    folds = fold_of(sample.timings, dealt(sample.timings, FOLDS))
    fitted = np.full(len(timings), np.nan)
    for fold in range(FOLDS if own else 0):
        held = folds == fold
        fitted[held] = predicted(fit_family(sample, ~held), sample, held)[held]

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
    shared = {share: np.full(len(timings), np.nan) for share in SHARES}
    for family, others in elsewhere.items():
        inside = sample.gpu_family == family
        for share, found in shared.items():
            found[inside] = predicted(replace(others, share=share), sample, inside)[inside]
    share = min(SHARES, key=lambda share: _family_error(sample, shared[share]))

    foretold: dict[Provenance, np.ndarray] = {
        "fitted": fitted,
        "family": relative,
        "transferred": shared[share],
    }
    spreads = {
        name: _spreads(sample, foretold, name) for name in np.unique(sample.cost_class).tolist()
    }
    trials = [_tried(sample, name, logs, spreads) for name, logs in foretold.items()]
    if elsewhere:
        trials.append(_tried_calibration(sample, elsewhere))
    return replace(model, share=share, spreads=spreads), trials


def _tried(
    sample: Sample,
    provenance: Provenance,
    log_seconds: np.ndarray,
    spreads: Mapping[str, Mapping[str, float]],
) -> Trial:
    spread = np.full(len(log_seconds), np.nan)
    for name, where, rows in sample.slices(np.isfinite(log_seconds)):
        spread[rows] = spreads[name][where if provenance == "fitted" else provenance]
    return Trial(
        provenance=provenance, timings=sample.timings, log_seconds=log_seconds, spread=spread
    )


def _tried_calibration(sample: Sample, elsewhere: Mapping[str, FamilyModel]) -> Trial:
    """One device of each GPU family, from 100 of its points and what other families know."""
    logs, spread = (np.full(len(sample.log_seconds), np.nan) for _ in range(2))
    rng = np.random.default_rng(0)
    for family, others in elsewhere.items():
        where = sample.device[sample.gpu_family == family][0]
        for name, _, rows in sample.slices(sample.device == where):
            points = rng.choice(rows, min(100, len(rows) // 2), replace=False)
            rest = np.setdiff1d(rows, points)
            if name in others.constants:
                local = calibrated_class(others, device(where), sample, name, points)
                logs[rest], _ = others.log_seconds(
                    name, sample.asked[rest], sample.columns[rest], device(where), local
                )
                spread[rest] = local.spread
    return Trial(provenance="calibrated", timings=sample.timings, log_seconds=logs, spread=spread)


def _family_error(sample: Sample, log_seconds: np.ndarray) -> float:
    """The mean error over GPU families, each counted once."""
    errors = np.abs(log_seconds - sample.log_seconds)
    means = [
        np.nanmean(errors[sample.gpu_family == family])
        for family in np.unique(sample.gpu_family)
        if np.isfinite(errors[sample.gpu_family == family]).any()
    ]
    return float(np.mean(means)) if means else 0.0


def _spreads(
    sample: Sample, foretold: Mapping[Provenance, np.ndarray], name: str
) -> dict[str, float]:
    """Half-widths for one cost class: by device where it was timed, else by provenance."""
    inside = sample.cost_class == name
    found: dict[str, float] = {}
    for where in np.unique(sample.device[inside]).tolist():
        found[where] = conformal(
            (foretold["fitted"] - sample.log_seconds)[inside & (sample.device == where)]
        )
    for provenance in ("family", "transferred"):
        found[provenance] = conformal((foretold[provenance] - sample.log_seconds)[inside])
    return {place: spread for place, spread in found.items() if math.isfinite(spread)}


def _without_gaps(models: Mapping[str, FamilyModel]) -> dict[str, FamilyModel]:
    """A class that only one GPU family was timed on is as unsure elsewhere as the worst other one;
    a family of one device says of its next one what it says of another family's."""
    known = [spreads for model in models.values() for spreads in model.spreads.values()]
    worst = max((spreads.get("transferred", 0.0) for spreads in known), default=0.0) or UNTESTED
    filled = {}
    for family, model in models.items():
        spreads = {name: {"transferred": worst, **found} for name, found in model.spreads.items()}
        spreads = {
            name: {"family": found["transferred"], **found} for name, found in spreads.items()
        }
        filled[family] = replace(model, spreads=spreads)
    return filled


def widened(trials: Sequence[Trial]) -> dict[Provenance, float]:
    """What the interval of a sum must be multiplied by to cover 90% of composed architectures."""
    found: dict[Provenance, float] = {}
    for provenance in PROVENANCES:
        chosen = [trial for trial in trials if trial.provenance == provenance]
        reach = [
            abs(math.log(told / true)) / half
            for told, true, half, _ in sums(chosen, provenance, each=12)
        ]
        found[provenance] = conformal(np.array(reach)) if len(reach) > 50 else 1.0
    return found


def sums(
    trials: Sequence[Trial], provenance: Provenance, each: int
) -> Iterator[tuple[float, float, float, tuple[str, Scenario]]]:
    """Composed architectures: foretold and true seconds, half-width in log, device and scenario."""
    calls: dict[str, list[tuple[Operator, float, float, float]]] = {}
    for trial in trials:
        for i in np.nonzero(np.isfinite(trial.log_seconds))[0].tolist():
            timing = trial.timings[i]
            told = math.exp(trial.log_seconds[i]), timing.seconds, float(trial.spread[i])
            calls.setdefault(timing.device, []).append((timing.operator, *told))
    for where, known in sorted(calls.items()):
        operators = [call for call, *_ in known]
        told, true, spread = (np.array([row[i] for row in known]) for i in (1, 2, 3))
        for scenario, drawn in compose(operators, np.random.default_rng(0), each):
            places, counts = np.array(list(drawn)), np.array(list(drawn.values()))
            half = spread_of_sum(
                counts * told[places],
                spread[places],
                (provenance,) * len(places),
                [operators[i].family for i in places],
            )
            total = float(counts @ told[places]), float(counts @ true[places])
            yield *total, half, (where, scenario)
