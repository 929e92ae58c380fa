"""Timings in the store: taken on the local device, and read back for a target."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..profilers.cluster import cluster
from ..profilers.device import Device
from ..profilers.pricing import TargetTimings, points
from ..profilers.report import Failure
from ..profilers.timing.calibration import Calibration, model_of
from ..profilers.timing.measure import PROTOCOL, Composition, Kind, Timed, measure, timing_key
from ..profilers.timing.units import pieces
from ..search_space.architecture import Architecture
from ..search_space.operators import Point
from ..search_space.workload import Workload
from .store import Store

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole model beside the sum of its blocks at one point."""

    workload: str
    what: str
    pieces_s: float
    whole_s: float

    @property
    def error(self) -> float:
        return self.pieces_s / self.whole_s - 1


def measure_blocks(
    store: Store,
    architecture: Architecture,
    workloads: Sequence[Workload],
    *,
    where: str,
    here: Device,
    whole: bool,
    tell: Tell,
) -> tuple[list[Failure], list[Comparison]]:
    """Time each piece at each point that the store has no timing of; with `whole` the model too.

    What does not fit or breaks the device is a Failure, and the rest goes on.
    """
    import torch

    from ..profilers.timing.worker import facts

    software = facts(torch.device(where))
    known = {timed.key: timed for timed in store.timings(here.name)}
    failures: list[Failure] = []

    def answer(part: Architecture, kind: Kind, point: Point) -> Timed | None:
        piece = f"{kind}:{part.key}"
        if found := known.get(timing_key(piece, here.name, point, software)):
            return found
        tell(f"timing {kind} {part.pattern} at {point.batch} x {point.tokens} of {point.context:,}")
        timed = measure(part, kind, point, device=where, name=here.name)
        if isinstance(timed, Failure):
            failures.append(timed)
            return None
        store.keep_timing(timed)
        known[timed.key] = timed  # another workload may have the same point
        return timed

    compositions, of_model = [], pieces(architecture)
    for workload, what, point in _passes(workloads):
        parts = [(piece, answer(piece.architecture, piece.part, point)) for piece in of_model]
        if not whole:
            continue
        timed = answer(architecture, "whole", point)
        if timed is not None and all(part is not None for _, part in parts):
            total = sum(piece.times * part.seconds for piece, part in parts if part)
            found = Comparison(workload=workload, what=what, pieces_s=total, whole_s=timed.seconds)
            compositions.append(found)
            _keep_whole(store, here, software, (total, architecture.num_layers, timed.seconds))
    return failures, compositions


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
    """In place of what was known of its device."""
    store.keep_calibration(calibration.device.name, calibration.plain())


def calibration_of(store: Store, device: str) -> Calibration | None:
    """The calibration of a device. Raises InputError for one of another schema, or a damaged one."""
    document = store.calibrations().get(device)
    if document is None:
        return None
    return Calibration.from_plain(document, source=f"calibration of {device} in the store")


def target_timings(store: Store, target: str) -> TargetTimings:
    """Everything for one target: for several devices, what is known of one of them."""
    device = cluster(target).device.name
    timed = {
        (answer.unit, answer.point): answer  # the newest is the last
        for answer in store.timings(device)
        if answer.facts.get("protocol") == str(PROTOCOL)
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
