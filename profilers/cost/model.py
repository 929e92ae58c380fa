"""The cost model: the time of operator calls on a device, with intervals and provenance.

    log t = log roofline(constants) + residual_fraction * residual

The roofline is `work.seconds`; the residual is a sum of regression trees fitted on timings. By what
is known of the device, the provenance of an estimate is

    fitted       the device was timed: its own constants, the residual of its GPU family
    calibrated   it was timed locally (local_fit.calibrated), which replaces all of the above
    family       another device of its GPU family was timed: constants and residual of the family
    transferred  only other families were: constants averaged over them, the more similar ones
                 weighing more, and a fraction of the residual that all families have in common
    stand_in     calls of this class were never timed: constants of a class with similar access
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from ...search_space.operators import Operator
from ..device import Device, devices
from .trees import Bins, Trees
from .work import Constants, Work, cost_class, features, seconds, work_of

# From best to worst.
Provenance = Literal["fitted", "calibrated", "family", "transferred", "stand_in"]
PROVENANCES: tuple[Provenance, ...] = (
    "fitted",
    "calibrated",
    "family",
    "transferred",
    "stand_in",
)
POOLED_FRACTION = 0.7  # of the common residual, on which the residual of a family is fitted

# Cost classes without timings, and the class whose constants they take: norms and lookups move data
# as a convolution does, index scores as an attention, sequential products as small products.
STAND_INS = {
    "scan_plain": "scan",
    "recurrent_step_plain": "recurrent_step",
    "rows": "conv",
    "sequential_gemm": "gemm",
    "index_scores": "attention_prefill",
    "selected_attention": "mla_decode",
    "channel_scan": "scan",
    "gemm_int8": "gemm_fp8",
    "experts_int8": "experts_fp8",
    "experts_fp4": "experts_fp8",
}
STAND_IN: Provenance = "stand_in"
# Half-widths in log that nothing could test: of a stand-in, and on devices of a vendor of which no
# device was timed.
STAND_IN_HALF_WIDTH = 0.5
OTHER_VENDOR_HALF_WIDTH = 1.0
# Fraction of the error's variance that the calls of a family have in common on one device.
COMMON_VARIANCE: dict[Provenance, float] = {
    "fitted": 0.1,
    "calibrated": 0.3,
    "family": 0.5,
    "transferred": 0.7,
    "stand_in": 1.0,
}
STEP_US = 3.0  # of a serial step, where the class that stands in has none


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of n calls [n], half-widths of their 90% intervals in log [n], and provenances."""

    seconds: np.ndarray
    half_width: np.ndarray
    provenance: tuple[Provenance, ...]

    @property
    def low(self) -> np.ndarray:
        """Lower bounds of the 90% intervals in seconds, [n]."""
        return self.seconds * np.exp(-self.half_width)

    @property
    def high(self) -> np.ndarray:
        """Upper bounds of the 90% intervals in seconds, [n]."""
        return self.seconds * np.exp(self.half_width)


@dataclass(frozen=True, kw_only=True)
class Total:
    """Seconds of a whole pass with a 90% interval, and by operator family.

    `provenance` is the worst of any call.
    """

    seconds: float
    low: float
    high: float
    provenance: Provenance
    by_family: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Smoother:
    """The mean of a Gaussian process through the errors that remain at local points, in log.

    Its kernel is Matern 3/2 with a length scale of `length` over the `chosen` columns, normalized
    by `center` and `scale`; `points` are normalized inputs and `weights` their coefficients
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 2.25 and 4.17).
    """

    chosen: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    length: float
    points: np.ndarray
    weights: np.ndarray

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        return matern(self.normalized(columns), self.points, self.length) @ self.weights

    def normalized(self, columns: np.ndarray) -> np.ndarray:
        """The chosen columns by center and scale, clipped to where points may lie."""
        return np.clip((columns[:, self.chosen] - self.center) / self.scale, -3, 3)


def matern(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    """Matern 3/2 covariance of inputs [n, f] and [m, f], [n, m]."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    distance = np.sqrt(3 * np.maximum(squared, 0)) / length
    return (1 + distance) * np.exp(-distance)


@dataclass(frozen=True, kw_only=True)
class Local:
    """The fit of one cost class on local timings of one device.

    `residual_fraction` of the shipped residual improved the fit; `half_width` is that of the 90%
    interval in log.
    """

    constants: Constants
    residual_fraction: float
    half_width: float
    smoother: Smoother | None


@dataclass(frozen=True, kw_only=True)
class FamilyModel:
    """The fit of one operator family on public timings.

    `constants` are by cost class and device. `pooled` is the residual that GPU families have in
    common, `own` that of each family on top of it; their first input is the index of the device in
    `members` of the family. `residual_fraction` of the pooled residual applies to a device of
    another family. `half_widths` are those of 90% intervals in log, by cost class and within it by
    device ("h100_sxm") or provenance ("family").
    """

    constants: dict[str, dict[str, Constants]]
    bins: Bins
    pooled: Trees
    own: dict[str, Trees]
    members: dict[str, tuple[str, ...]]
    residual_fraction: float
    half_widths: dict[str, dict[str, float]]

    @classmethod
    def of_constants(cls, name: str, device: Device, constants: Constants) -> Self:
        """A family of one cost class with constants alone."""
        return cls(
            constants={name: {device.name: constants}},
            bins=Bins(edges=np.empty((0, 0))),
            pooled=Trees.nothing(),
            own={},
            members={},
            residual_fraction=0.0,
            half_widths={},
        )

    def residual(self, columns: np.ndarray, device: Device) -> np.ndarray:
        """The correction of the roofline by the trees, in log, [n]."""
        binned = self.binned(columns, device)
        if device.family not in self.own:
            return self.pooled(binned)
        return POOLED_FRACTION * self.pooled(binned) + self.own[device.family](binned)

    def binned(self, columns: np.ndarray, device: Device) -> np.ndarray:
        """uint8 [n, 1 + f]: the index of the device in its family, then the bins of the columns."""
        members = self.members.get(device.family, (device.name,))
        index = np.full(len(columns), _nearest(device, members), np.uint8)
        return np.column_stack([index, self.bins(columns)])

    def log_seconds(
        self,
        cost_class: str,
        work: Work,
        columns: np.ndarray,
        device: Device,
        local: Local | None = None,
    ) -> tuple[np.ndarray, Provenance]:
        """The times of calls of one cost class in log seconds, [n], and their provenance."""
        residual = self.residual(columns, device)
        if local is not None:
            found = np.log(seconds(work, local.constants)) + local.residual_fraction * residual
            if local.smoother is not None:
                found += local.smoother(np.column_stack([columns, residual]))
            return found, "calibrated"
        constants, provenance = constants_for(self.constants[cost_class], device)
        fraction = 1.0 if device.family in self.own else self.residual_fraction
        return np.log(seconds(work, constants)) + fraction * residual, provenance

    def half_width(self, cost_class: str, device: Device, provenance: Provenance) -> float:
        """The half-width of the 90% interval of a call of the class, in log."""
        return self.half_widths[cost_class][device.name if provenance == "fitted" else provenance]


def _ratios(device: Device) -> np.ndarray:
    """Compute and cache per bandwidth, and the bandwidth, in log: similarity of devices."""
    ridge = device.bf16 * 1e3 / device.memory_gbps
    return np.log([ridge, 1e3 * device.l2_mb / device.memory_gbps, device.memory_gbps])


def _distance(a: Device, b: Device) -> float:
    return float(np.sum((_ratios(a) - _ratios(b)) ** 2))


def _nearest(device: Device, names: Sequence[str]) -> int:
    """The index of the device in `names`, or of the most similar device there."""
    if device.name in names:
        return names.index(device.name)
    return min(range(len(names)), key=lambda i: _distance(device, devices()[names[i]]))


def constants_for(known: Mapping[str, Constants], device: Device) -> tuple[Constants, Provenance]:
    """The constants of a cost class for a device, from `known` ones by device name.

    Its own, else an average over its GPU family, else one over the averages of all families; the
    more similar devices weigh more.
    """
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
    averaged = np.average(logs, axis=0, weights=weights)
    # The last constant, the cache's rate per unit, scales with the memory rate per unit for some
    # kernels and not for others: take the one of both on which the families agree better.
    rates = [_memory_gbps_per_unit(devices()[names[0]]) for names in families.values()]
    relative = logs[:, -1] - np.log(rates)
    if relative.std() < logs[:, -1].std():
        own = math.log(_memory_gbps_per_unit(device))
        averaged[-1] = np.average(relative, weights=weights) + own
    return Constants.from_log(averaged), "transferred"


def _memory_gbps_per_unit(device: Device) -> float:
    return device.memory_gbps / device.units


def _mean(known: Mapping[str, Constants], names: Sequence[str], device: Device) -> Constants:
    logs = [known[name].log() for name in names]
    weights = [1 / (0.1 + _distance(device, devices()[name])) for name in names]
    return Constants.from_log(np.average(logs, axis=0, weights=weights))


class Model:
    """Estimates of operator calls on devices; those given once are cached.

    `families` are the shipped fits by operator family, `local` the calibrations by device and cost
    class. `inflation` are factors by provenance of the half-width of a sum, so that its interval
    covers 90% too.
    """

    def __init__(
        self,
        families: Mapping[str, FamilyModel],
        inflation: Mapping[Provenance, float],
        local: Mapping[str, Mapping[str, Local]] | None = None,
    ) -> None:
        self.families, self.inflation, self.local = families, inflation, local or {}
        self._known: dict[str, dict[Operator, tuple[float, float, Provenance]]] = {}

    def times(self, calls: Sequence[Operator], device: Device) -> Times:
        """Estimates of calls on a device, in their order."""
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
            half_width=np.array([half_width for _, half_width, _ in found]),
            provenance=tuple(provenance for _, _, provenance in found),
        )

    def _estimated(
        self, family: str, calls: Sequence[Operator], device: Device
    ) -> list[tuple[float, float, Provenance]]:
        """(seconds, half-width, provenance) of calls of one operator family."""
        work = work_of(calls, device)
        classes = np.array([cost_class(call) for call in calls])
        found: list[tuple[float, float, Provenance]] = [(0.0, 0.0, "stand_in")] * len(calls)
        for name in dict.fromkeys(classes.tolist()):
            (chosen,) = np.nonzero(classes == name)
            part = work[chosen]
            local = self.local.get(device.name, {}).get(name)
            model = self.family(family, name, device)
            if local is None and name not in self._constants(family):
                constants = model.constants[name][device.name]
                logs, half_width, provenance = (
                    np.log(seconds(part, constants)),
                    STAND_IN_HALF_WIDTH,
                    STAND_IN,
                )
            else:
                columns = features([calls[i] for i in chosen.tolist()], part, device)
                logs, provenance = model.log_seconds(name, part, columns, device, local)
                half_width = (
                    local.half_width if local else model.half_width(name, device, provenance)
                )
            if local is None and device.vendor != "nvidia":
                half_width = max(half_width, OTHER_VENDOR_HALF_WIDTH)
            for index, value in zip(chosen.tolist(), np.exp(logs).tolist(), strict=True):
                found[index] = (value, half_width, provenance)
        return found

    def _constants(self, family: str) -> Mapping[str, Mapping[str, Constants]]:
        return self.families[family].constants if family in self.families else {}

    def family(self, family: str, name: str, device: Device) -> FamilyModel:
        """The fit of an operator family; constants of the stand-in for a cost class without one."""
        if name in self._constants(family):
            return self.families[family]
        other = STAND_INS.get(name, STAND_INS.get(family, family))
        constants, _ = constants_for(self.families[other].constants[other], device)
        if other != "scan":
            constants = replace(constants, step_us=STEP_US)
        return FamilyModel.of_constants(name, device, constants)

    def total(self, calls: Mapping[Operator, int], device: Device) -> Total:
        """The time of calls that run one after another, each as often as counted."""
        times = self.times(list(calls), device)
        spent = times.seconds * np.array(list(calls.values()))
        whole = float(spent.sum())
        families = [call.family for call in calls]
        by_family: dict[str, float] = {}
        for name, part in zip(families, spent.tolist(), strict=True):
            by_family[name] = by_family.get(name, 0.0) + part
        inflation = np.array([self.inflation[provenance] for provenance in times.provenance])
        half_width = half_width_of_sum(
            spent, times.half_width * inflation, times.provenance, families
        )
        return Total(
            seconds=whole,
            low=whole * math.exp(-half_width),
            high=whole * math.exp(half_width),
            provenance=max(times.provenance, key=PROVENANCES.index),
            by_family=by_family,
        )


def half_width_of_sum(
    spent: np.ndarray,
    half_width: np.ndarray,
    provenance: Sequence[Provenance],
    families: Sequence[str],
) -> float:
    """The half-width in log of the interval of a sum of times, from those of its parts [n].

    The error of a call has an independent part, which adds up in quadrature over all calls, and a
    part that the calls of its family have in common, which adds up linearly within the family.
    """
    error = spent * half_width
    common = np.array([COMMON_VARIANCE[name] for name in provenance])
    together: dict[str, float] = {}
    for name, part in zip(families, (error * np.sqrt(common)).tolist(), strict=True):
        together[name] = together.get(name, 0.0) + part
    alone = math.sqrt(float(np.sum(error**2 * (1 - common))))
    return math.hypot(alone, *together.values()) / float(spent.sum())
