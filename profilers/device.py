"""The data sheet of an accelerator, by name."""

from functools import cache
from importlib.resources import files
from typing import Literal

from ..search_space.document import InputError, Record, nearest, parse_document, validate
from ..search_space.operators import NumberFormat

_FAMILY_OF = {"blackwell_ultra": "blackwell"}


class Device(Record):
    """The data sheet of one accelerator, a row of devices.yaml.

    Peaks are dense, in TFLOP/s (int8: TOP/s) with FP32 accumulation, None where there is no such
    unit. `units` are streaming multiprocessors (AMD: compute units; a CPU: threads). `sm` names the
    GPU architecture of kernels/configs.py whose kernels run ("sm_90"), None where none do.
    `link_gbps` is to the other devices of a node, both directions together; memory_gbps is 1e9 B/s.
    `reported` is part of the name that the driver gives; `note` says where sources disagree.
    """

    name: str
    vendor: Literal["nvidia", "amd", "host"]
    arch: str
    sm: str | None
    units: int
    l2_mb: float
    memory_gb: float
    memory_gbps: float
    bf16: float
    fp8: float | None
    int8: float | None
    fp4: float | None
    link_gbps: float
    source: tuple[str, ...]
    note: str = ""
    reported: str | None = None

    @property
    def family(self) -> str:
        """The GPU family that the cost model is fitted by; Blackwell Ultra counts as Blackwell."""
        return _FAMILY_OF.get(self.arch, self.arch)

    def peak(self, format: NumberFormat) -> float:
        """Peak FLOP/s of matrix products in a format; of BF16 where there is no unit for it."""
        rates = {"bf16": self.bf16, "fp8": self.fp8, "int8": self.int8, "fp4": self.fp4}
        return (rates[format] or self.bf16) * 1e12


@cache
def devices() -> dict[str, Device]:
    """All rows of devices.yaml by name: the devices that can be a target."""
    text = files("archfront.profilers").joinpath("devices.yaml").read_text()
    document = parse_document(text, source="devices.yaml")
    return {
        name: validate(Device, document, {"name": name, **facts}, (name,))
        for name, facts in document.data.items()
    }


def device(name: str) -> Device:
    """The device of a name. Raises InputError with the nearest name for an unknown one."""
    if name not in devices():
        raise InputError(f"unknown target {name!r}{nearest(name, devices())}")
    return devices()[name]
