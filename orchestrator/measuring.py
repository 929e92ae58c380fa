"""Timings in the store: measured on the local device, read for a target."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..profilers.cluster import cluster
from ..profilers.device import Device
from ..profilers.pricing import TargetTimings, points
from ..profilers.report import Failure
from ..profilers.timing.calibration import Calibration, model_of
from ..profilers.timing.measure import PROTOCOL, Composition, Kind, Timed, measure, timing_key
from ..profilers.timing.units import timing_units
from ..search_space.architecture import Architecture
from ..search_space.operators import Point
from ..search_space.workload import Workload
from .store import Store


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Seconds of a whole model and of the sum of its timing units, at one pass of a workload."""

    workload: str
    what: str
    units_s: float
    whole_s: float

    @property
    def error(self) -> float:
        """The relative error of the sum."""
        return self.units_s / self.whole_s - 1


def measure_blocks(
    store: Store,
    architecture: Architecture,
    workloads: Sequence[Workload],
    *,
    where: str,
    here: Device,
    software: dict[str, str],
    whole: bool,
    report: Callable[[str], None],
) -> tuple[list[Failure], list[Comparison]]:
    """Time each unit of an architecture at each point of the workloads, and keep the timings.

    What the store has under the same software is not timed again. With `whole` the model is timed
    too, and compared with the sum of its units. `where` is torch's name of the device, `here` its
    row with what the driver reports; `report` gets a line before each timing. A timing that fails,
    for memory or by the device, is a Failure in the answer, and the others go on.
    """
    known = {timed.key: timed for timed in store.timings(here.name)}
    failures: list[Failure] = []

    def timing(part: Architecture, kind: Kind, point: Point) -> Timed | None:
        unit = f"{kind}:{part.key}"
        if found := known.get(timing_key(unit, here.name, point, software)):
            return found
        report(
            f"timing {kind} {part.pattern} at {point.batch} x {point.tokens} of {point.context:,}"
        )
        timed = measure(part, kind, point, device=where, name=here.name)
        if isinstance(timed, Failure):
            failures.append(timed)
            return None
        store.keep_timing(timed)
        known[timed.key] = timed  # another workload may have the same point
        return timed

    comparisons, units = [], timing_units(architecture)
    for workload, what, point in _passes(workloads):
        parts = [(unit, timing(unit.architecture, unit.kind, point)) for unit in units]
        if not whole:
            continue
        timed = timing(architecture, "whole", point)
        if timed is not None and all(part is not None for _, part in parts):
            total = sum(unit.count * part.seconds for unit, part in parts if part)
            found = Comparison(workload=workload, what=what, units_s=total, whole_s=timed.seconds)
            comparisons.append(found)
            _keep_whole(store, here, software, (total, architecture.num_layers, timed.seconds))
    return failures, comparisons


def _passes(workloads: Sequence[Workload]) -> Iterator[tuple[str, str, Point]]:
    for workload in workloads:
        for what, point in points(workload).items():
            yield workload.name, what, point


def _keep_whole(
    store: Store, here: Device, software: dict[str, str], whole: tuple[float, int, float]
) -> None:
    known = calibration_of(store, here.name) or Calibration(device=here, software=software)
    if whole not in known.wholes:
        keep(store, replace(known, wholes=(*known.wholes, whole)))


def keep(store: Store, calibration: Calibration) -> None:
    """Store a calibration in place of the earlier one of its device."""
    store.keep_calibration(calibration.device.name, calibration.plain())


def calibration_of(store: Store, device: str) -> Calibration | None:
    """The stored calibration of a device, or None.

    Raises InputError for one of another schema or a damaged one.
    """
    document = store.calibrations().get(device)
    if document is None:
        return None
    return Calibration.from_plain(document, source=f"calibration of {device} in the store")


def target_timings(store: Store, target: str) -> TargetTimings:
    """Timings and calibration of a target's device. Raises InputError."""
    device = cluster(target).device.name
    timed = {
        (timed.unit, timed.point): timed  # the newest is the last
        for timed in store.timings(device)
        if timed.facts.get("protocol") == str(PROTOCOL)
    }
    calibration = calibration_of(store, device)
    if calibration is None:
        return TargetTimings(timed=timed)
    wholes = calibration.wholes
    return TargetTimings(
        timed=timed,
        model=model_of(calibration),
        composition=Composition.fitted(wholes) if wholes else Composition(),
        device=calibration.device,
    )
