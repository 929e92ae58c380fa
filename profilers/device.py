"""The facts of one accelerator, by name."""

from functools import cache
from importlib.resources import files
from typing import Literal

from ..search_space.document import InputError, Record, nearest, parse_document, validate
from ..search_space.operators import NumberFormat

_FAMILY_OF = {"blackwell_ultra": "blackwell"}


class Device(Record):
    """Dense peaks in TFLOP/s (int8: TOP/s) with FP32 accumulation; None where there is no unit.

    `link_gbps` leads to the other devices of a node, both directions together. `reported` is part of
    the name that a driver gives. `units` are streaming multiprocessors (AMD: compute units). `note` says where the sources
    disagree, or that a figure is rough.
    """

    name: str
    vendor: Literal["nvidia", "amd", "host"]
    arch: str
    units: int
    l2_mb: float
    memory_gb: float
    memory_gbps: float
    bf16: float
    fp8: float | None
    int8: float | None
    fp4: float | None
    link_gbps: float
    tdp_w: float
    source: tuple[str, ...]
    note: str = ""
    reported: str | None = None

    @property
    def family(self) -> str:
        """Devices of one family run the same kernels: a Blackwell Ultra's are a Blackwell's."""
        return _FAMILY_OF.get(self.arch, self.arch)

    def peak(self, format: NumberFormat) -> float:
        """FLOP/s of products in a format; where the device has no unit for it, of BF16."""
        rates = {"bf16": self.bf16, "fp8": self.fp8, "int8": self.int8, "fp4": self.fp4}
        return (rates[format] or self.bf16) * 1e12


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
