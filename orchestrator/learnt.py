"""What a store knows of a target from timings: the cost model's fit, blocks, whole models."""

from ..profilers.blocks.measure import PROTOCOL, Composition
from ..profilers.calibration import Calibration, model_of
from ..profilers.cluster import cluster
from ..profilers.estimate import Learnt
from .store import Store


def calibration_of(store: Store, device: str) -> Calibration | None:
    """The calibration of a device. Raises InputError for one of another schema, or a damaged one."""
    document = store.calibrations().get(device)
    if document is None:
        return None
    return Calibration.from_plain(document, source=f"calibration of {device} in the store")


def learnt_of(store: Store, target: str) -> Learnt:
    """Everything for one target: for several devices, what is known of one of them."""
    device = cluster(target).device.name
    timed = {
        (answer.piece, answer.point): answer  # the newest is the last
        for answer in store.timings(device)
        if answer.facts.get("protocol") == str(PROTOCOL)
    }
    calibration = calibration_of(store, device)
    if calibration is None:
        return Learnt(timed=timed)
    wholes = calibration.wholes
    return Learnt(
        timed=timed,
        model=model_of(calibration),
        composition=Composition.fitted(wholes) if wholes else Composition(),
        device=calibration.device,
    )
