"""The time of operator calls on a device: constants, a residual learned from timings, an interval.

    log t = log physics(constants) + share * residual

A device whose timings were fitted has its own constants and the residual of its GPU family. One of
the same family borrows both. One of no measured family has constants averaged over the measured
families, the nearer ones first, and a share of what all families have in common. Calls of a kind
that nobody timed stand on the constants of a kind that moves data alike. Calibration on local
timings (fitting.calibrated) replaces all of these for the device at hand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from ...search_space.operators import Operator
from ..device import Device, devices
from .trees import Bins, Trees
from .work import Constants, Work, cost_class, features, seconds, work

# Worst last.
Provenance = Literal["fitted", "calibrated", "family", "transferred", "stand_in"]
PROVENANCES: tuple[Provenance, ...] = (
    "fitted",
    "calibrated",
    "family",
    "transferred",
    "stand_in",
)
POOLED_SHARE = 0.7  # of the common residual, which the residual of a family builds upon

# Kinds without timings, and whose constants they take: norms and lookups move data as a convolution
# does; index scores stand before an attention; products one after another are small products.
STAND_INS = {
    "scan_plain": "scan",
    "recurrent_step_plain": "recurrent_step",
    "rows": "conv",
    "waiting": "gemm",
    "index_scores": "attention_prefill",
    "selected_attention": "mla_decode",
    "channel_scan": "scan",
    "gemm_int8": "gemm_fp8",
    "experts_int8": "experts_fp8",
    "experts_fp4": "experts_fp8",
}
STAND_IN: Provenance = "stand_in"
STAND_IN_SPREAD = 0.5  # in log; a guess, since there is nothing to test it on
FOREIGN_SPREAD = 1.0  # on devices of another vendor than all that were timed; a guess too
# The part of the error's variance that the calls of a family have in common on one device.
COMMON: dict[Provenance, float] = {
    "fitted": 0.1,
    "calibrated": 0.3,
    "family": 0.5,
    "transferred": 0.7,
    "stand_in": 1.0,
}
WAIT_US = 3.0  # one small product after another, where the stand-in has no serial steps


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of n calls, the half-width of their 90% intervals in log, where each comes from."""

    seconds: np.ndarray
    spread: np.ndarray
    provenance: tuple[Provenance, ...]

    @property
    def low(self) -> np.ndarray:
        return self.seconds * np.exp(-self.spread)

    @property
    def high(self) -> np.ndarray:
        return self.seconds * np.exp(self.spread)


@dataclass(frozen=True, kw_only=True)
class Total:
    """Seconds of a whole forward pass with a 90% interval; `provenance` is the worst of any part."""

    seconds: float
    low: float
    high: float
    provenance: Provenance
    by_family: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Smoother:
    """What local points say beyond constants and residual: a Gaussian process through them.

    The kernel is Matern 3/2 of `length` over the chosen columns, put on a par by `center` and
    `scale`.
    """

    chosen: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    length: float
    points: np.ndarray
    weights: np.ndarray

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        return matern(self.placed(columns), self.points, self.length) @ self.weights

    def placed(self, columns: np.ndarray) -> np.ndarray:
        return np.clip((columns[:, self.chosen] - self.center) / self.scale, -3, 3)


def matern(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    far = np.sqrt(3 * np.maximum(squared, 0)) / length
    return (1 + far) * np.exp(-far)


@dataclass(frozen=True, kw_only=True)
class Local:
    """The fit of one cost class on timings of one device: the constants, how much of the residual
    held there, and what the points say besides."""

    constants: Constants
    share: float
    spread: float
    smoother: Smoother | None


@dataclass(frozen=True, kw_only=True)
class FamilyModel:
    """Everything known about the calls of one operator family.

    `constants` are by cost class and device. `pooled` is the residual that the GPU families have in
    common, `own` what is left in each; its first column is the device's place in `members`.
    `share` of the pooled residual is believed on a device of another family. `spreads` are
    half-widths in log of 90% intervals, by cost class, and within it by device or provenance.
    """

    constants: dict[str, dict[str, Constants]]
    bins: Bins
    pooled: Trees
    own: dict[str, Trees]
    members: dict[str, tuple[str, ...]]
    share: float
    spreads: dict[str, dict[str, float]]

    @classmethod
    def of_constants(cls, name: str, device: Device, constants: Constants) -> Self:
        """A class without a residual."""
        return cls(
            constants={name: {device.name: constants}},
            bins=Bins(edges=np.empty((0, 0))),
            pooled=Trees.nothing(),
            own={},
            members={},
            share=0.0,
            spreads={},
        )

    def residual(self, columns: np.ndarray, device: Device) -> np.ndarray:
        """What timings of other shapes add to physics, in log, [n]; not yet shared down."""
        binned = self.binned(columns, device)
        if device.family not in self.own:
            return self.pooled(binned)
        return POOLED_SHARE * self.pooled(binned) + self.own[device.family](binned)

    def binned(self, columns: np.ndarray, device: Device) -> np.ndarray:
        """uint8 [n, 1 + f]: the place of the device in its family, then the bins of the columns."""
        members = self.members.get(device.family, (device.name,))
        place = np.full(len(columns), _nearest(device, members), np.uint8)
        return np.column_stack([place, self.bins(columns)])

    def log_seconds(
        self,
        cost_class: str,
        asked: Work,
        columns: np.ndarray,
        device: Device,
        local: Local | None = None,
    ) -> tuple[np.ndarray, Provenance]:
        """The times of calls of one class in log, [n], and where they come from."""
        residual = self.residual(columns, device)
        if local is not None:
            found = np.log(seconds(asked, local.constants)) + local.share * residual
            if local.smoother is not None:
                found += local.smoother(np.column_stack([columns, residual]))
            return found, "calibrated"
        constants, provenance = constants_for(self.constants[cost_class], device)
        share = 1.0 if device.family in self.own else self.share
        return np.log(seconds(asked, constants)) + share * residual, provenance

    def spread(self, cost_class: str, device: Device, provenance: Provenance) -> float:
        """The half-width in log of the 90% interval of a call of the class."""
        return self.spreads[cost_class][device.name if provenance == "fitted" else provenance]


def _facts(device: Device) -> np.ndarray:
    """What makes two devices alike: how much they compute and cache for each byte they move."""
    ridge = device.bf16 * 1e3 / device.memory_gbps
    return np.log([ridge, 1e3 * device.l2_mb / device.memory_gbps, device.memory_gbps])


def _distance(a: Device, b: Device) -> float:
    return float(np.sum((_facts(a) - _facts(b)) ** 2))


def _nearest(device: Device, names: Sequence[str]) -> int:
    """The place of the device among names, or of the one most like it."""
    if device.name in names:
        return names.index(device.name)
    return min(range(len(names)), key=lambda i: _distance(device, devices()[names[i]]))


def constants_for(known: Mapping[str, Constants], device: Device) -> tuple[Constants, Provenance]:
    """The constants of a class for a device: its own, its family's, or a mean over families."""
    if device.name in known:
        return known[device.name], "fitted"
    families: dict[str, list[str]] = {}
    for name in known:
        families.setdefault(devices()[name].family, []).append(name)
    if device.family in families:
        return _mean(known, families[device.family], device), "family"
    means = {family: _mean(known, names, device) for family, names in families.items()}
    weights = [
        1 / (0.3 + min(_distance(device, devices()[name]) for name in names))
        for names in families.values()
    ]
    logs = np.array([mean.log() for mean in means.values()])
    mixed = np.average(logs, axis=0, weights=weights)
    # Some kernels find their data in the cache, whose rate goes with the units, and some do not:
    # the families agree better on the one or on the other.
    rates = [_memory_gbps_a_unit(devices()[names[0]]) for names in families.values()]
    relative = logs[:, -1] - np.log(rates)
    if relative.std() < logs[:, -1].std():
        own = math.log(_memory_gbps_a_unit(device))
        mixed[-1] = np.average(relative, weights=weights) + own
    return Constants.from_log(mixed), "transferred"


def _memory_gbps_a_unit(device: Device) -> float:
    return device.memory_gbps / device.units


def _mean(known: Mapping[str, Constants], names: Sequence[str], device: Device) -> Constants:
    logs = [known[name].log() for name in names]
    weights = [1 / (0.1 + _distance(device, devices()[name])) for name in names]
    return Constants.from_log(np.average(logs, axis=0, weights=weights))


class Model:
    """Times of calls, remembered; `local` are fits on timings of the devices at hand.

    `widen` scales the interval of a sum, by provenance, so that it too covers 90%.
    """

    def __init__(
        self,
        families: Mapping[str, FamilyModel],
        widen: Mapping[Provenance, float],
        local: Mapping[str, Mapping[str, Local]] | None = None,
    ) -> None:
        self.families, self.widen, self.local = families, widen, local or {}
        self._known: dict[str, dict[Operator, tuple[float, float, Provenance]]] = {}

    def times(self, calls: Sequence[Operator], device: Device) -> Times:
        """How long each call takes on the device, in the order of the calls."""
        known = self._known.setdefault(device.name, {})
        new: dict[str, list[Operator]] = {}
        for call in dict.fromkeys(calls):
            if call not in known:
                new.setdefault(call.family, []).append(call)
        for family, unknown in new.items():
            known.update(zip(unknown, self._estimated(family, unknown, device), strict=True))
        found = [known[call] for call in calls]
        return Times(
            seconds=np.array([seconds for seconds, _, _ in found]),
            spread=np.array([spread for _, spread, _ in found]),
            provenance=tuple(provenance for _, _, provenance in found),
        )

    def _estimated(
        self, family: str, calls: Sequence[Operator], device: Device
    ) -> list[tuple[float, float, Provenance]]:
        """The times of calls of one family that have not been asked for yet."""
        asked = work(calls, device)
        classes = np.array([cost_class(call) for call in calls])
        found: list[tuple[float, float, Provenance]] = [(0.0, 0.0, "stand_in")] * len(calls)
        for name in dict.fromkeys(classes.tolist()):
            (chosen,) = np.nonzero(classes == name)
            part = asked[chosen]
            local = self.local.get(device.name, {}).get(name)
            model = self.family(family, name, device)
            if local is None and name not in self._constants(family):
                constants = model.constants[name][device.name]
                logs, spread, provenance = (
                    np.log(seconds(part, constants)),
                    STAND_IN_SPREAD,
                    STAND_IN,
                )
            else:
                columns = features([calls[i] for i in chosen.tolist()], part, device)
                logs, provenance = model.log_seconds(name, part, columns, device, local)
                spread = local.spread if local else model.spread(name, device, provenance)
            if local is None and device.vendor != "nvidia":
                spread = max(spread, FOREIGN_SPREAD)
            for index, value in zip(chosen.tolist(), np.exp(logs).tolist(), strict=True):
                found[index] = (value, spread, provenance)
        return found

    def _constants(self, family: str) -> Mapping[str, Mapping[str, Constants]]:
        return self.families[family].constants if family in self.families else {}

    def family(self, family: str, name: str, device: Device) -> FamilyModel:
        """What is known of a class of calls; of one that nobody timed, constants of a like one."""
        if name in self._constants(family):
            return self.families[family]
        kind = STAND_INS.get(name, STAND_INS.get(family, family))
        constants, _ = constants_for(self.families[kind].constants[kind], device)
        if kind != "scan":
            constants = replace(constants, step_us=WAIT_US)
        return FamilyModel.of_constants(name, device, constants)

    def total(self, calls: Mapping[Operator, int], device: Device) -> Total:
        """The time of calls that follow each other, each as often as counted."""
        times = self.times(list(calls), device)
        spent = times.seconds * np.array(list(calls.values()))
        whole = float(spent.sum())
        families = [call.family for call in calls]
        by_family: dict[str, float] = {}
        for name, part in zip(families, spent.tolist(), strict=True):
            by_family[name] = by_family.get(name, 0.0) + part
        widen = np.array([self.widen[provenance] for provenance in times.provenance])
        half = spread_of_sum(spent, times.spread * widen, times.provenance, families)
        return Total(
            seconds=whole,
            low=whole * math.exp(-half),
            high=whole * math.exp(half),
            provenance=max(times.provenance, key=PROVENANCES.index),
            by_family=by_family,
        )


def spread_of_sum(
    spent: np.ndarray,
    spread: np.ndarray,
    provenance: Sequence[Provenance],
    families: Sequence[str],
) -> float:
    """The half-width in log of the interval of a sum of times, from those of its parts.

    Errors of single calls are independent but for a share that the calls of a family have in
    common: the first add up in quadrature over all, the second within the family.
    """
    error = spent * spread
    common = np.array([COMMON[name] for name in provenance])
    together: dict[str, float] = {}
    for name, part in zip(families, (error * np.sqrt(common)).tolist(), strict=True):
        together[name] = together.get(name, 0.0) + part
    alone = math.sqrt(float(np.sum(error**2 * (1 - common))))
    return math.hypot(alone, *together.values()) / float(spent.sum())
