"""The calibration of a device: timings of operators, as plain data and as a cost model."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from ...search_space import operators
from ...search_space.document import InputError, nearest
from ...search_space.operators import Operator
from ..cost.model import Model
from ..cost.shipped import shipped
from ..cost.tables import Timing
from ..device import Device, devices
from .measure import PROTOCOL

SCHEMA = 1
OPERATORS: dict[str, type[Operator]] = {
    kind.name: kind
    for kind in vars(operators).values()
    if isinstance(kind, type) and issubclass(kind, Operator) and kind is not Operator
}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Timings of operator calls on one device, and of whole models with the sums of their units.

    `device` is its row of devices.yaml with what the driver reports; `timings` are (call, seconds);
    `wholes` are (sum of timing units in seconds, number of layers, whole model in seconds).
    """

    device: Device
    software: dict[str, str]
    timings: tuple[tuple[Operator, float], ...] = ()
    wholes: tuple[tuple[float, int, float], ...] = ()

    def plain(self) -> dict[str, Any]:
        """Plain data for the store or a file."""
        return {
            "schema": SCHEMA,
            "protocol": PROTOCOL,
            "device": self.device.model_dump(mode="json"),
            "software": self.software,
            "timings": [
                {"operator": call.name, **_without_defaults(call), "seconds": seconds}
                for call, seconds in self.timings
            ],
            "wholes": [list(whole) for whole in self.wholes],
        }

    @classmethod
    def from_text(cls, text: str, source: str) -> Self:
        """Parse the JSON text of a file. Raises InputError that names the `source`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{source}: is not JSON") from None
        return cls.from_plain(data, source)

    @classmethod
    def from_plain(cls, data: object, source: str) -> Self:
        """Read plain data. Facts of the device that it lacks are those of devices.yaml.

        Raises InputError, one line with the `source`, for another schema or timing protocol, an
        unknown device or damaged data.
        """
        if not isinstance(data, dict) or not isinstance(data.get("device"), dict):
            raise InputError(f"{source}: no calibration: it must have schema, device and timings")
        for name, version in (("schema", SCHEMA), ("protocol", PROTOCOL)):
            if data.get(name) != version:
                raise InputError(f"{source}: {name} must be {version}, got {data.get(name)!r}")
        name = data["device"].get("name")
        if name not in devices():
            near = nearest(str(name), devices())
            raise InputError(f"{source}: device.name: unknown device {name!r}{near}")
        try:
            return cls(
                device=_device(devices()[name], data["device"]),
                software={str(k): str(v) for k, v in data["software"].items()},
                timings=tuple(_timing(row) for row in data["timings"]),
                wholes=tuple((float(a), int(n), float(b)) for a, n, b in data["wholes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{source}: damaged calibration: {reason}") from None


def _device(row: Device, facts: Mapping[str, Any]) -> Device:
    known = {name: value for name, value in facts.items() if name in Device.model_fields}
    return Device.model_validate(row.model_dump() | known)


def _without_defaults(call: Operator) -> dict[str, Any]:
    return {
        f.name: value
        for f in fields(call)
        if (value := getattr(call, f.name)) != f.default or f.default is MISSING
    }


def _timing(row: Mapping[str, Any]) -> tuple[Operator, float]:
    given = dict(row)
    seconds = float(given.pop("seconds"))
    if not 0 < seconds < 1e4:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    return OPERATORS[given.pop("operator")](**given), seconds


def model_of(calibration: Calibration) -> Model:
    """The shipped cost model, fitted to the timings of the calibration."""
    from ..cost.local_fit import calibrated  # imports scipy, which only a fit needs

    timings = [
        Timing(
            device=calibration.device.name,
            operator=call,
            seconds=seconds,
            source="calibration",
            site=call,
        )
        for call, seconds in calibration.timings
    ]
    return calibrated(shipped(), calibration.device, timings)
