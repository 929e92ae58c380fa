"""The facts of one accelerator, by name."""

from functools import cache
from importlib.resources import files
from typing import Literal

from ..search_space.document import InputError, Record, nearest, parse_document, validate


class Device(Record):
    """Dense peaks in TFLOP/s with FP32 accumulation; `fp8` is None where the hardware has none."""

    name: str
    vendor: Literal["nvidia", "amd"]
    arch: str
    units: int
    l2_mb: float
    memory_gb: float
    memory_gbps: float
    bf16: float
    fp8: float | None


@cache
def devices() -> dict[str, Device]:
    """All devices that can be a target, by name, from devices.yaml."""
    text = files("archfront.profilers").joinpath("devices.yaml").read_text()
    document = parse_document(text, source="devices.yaml")
    return {
        name: validate(Device, document, {"name": name, **facts}, (name,))
        for name, facts in document.data.items()
    }


def device(name: str) -> Device:
    """The device of that name. Raises InputError with near names."""
    if name not in devices():
        raise InputError(f"unknown target {name!r}{nearest(name, devices())}")
    return devices()[name]
