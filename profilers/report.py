"""The answers a profile can give: a Report of Measurements, or a Failure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from ..search_space.metrics import METRICS

# `measured` on the named device; `composed` from measured blocks; `estimated` by the cost model;
# `counted` by formula, exact.
Provenance = Literal["measured", "composed", "estimated", "counted"]
FailureKind = Literal["oom", "nan", "crash", "hang", "error", "missing", "lost"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number with where it comes from and how sure it is.

    `low` and `high` bound a 90% interval and equal `value` where it is counted; they are None
    where nothing is known about the spread (one seed), which is not the same as no spread.
    """

    name: str
    value: float
    provenance: Provenance
    device: str | None = None
    workload: str | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def counted(cls, name: str, value: float, *, workload: str | None = None) -> Self:
        """An exact number, by formula."""
        return cls(
            name=name, value=value, low=value, high=value, workload=workload, provenance="counted"
        )

    @classmethod
    def estimated(
        cls,
        name: str,
        value: float,
        low: float,
        high: float,
        *,
        workload: str | None,
        device: str | None,
    ) -> Self:
        """A number of a model, with its 90% interval."""
        return cls(
            name=name,
            value=value,
            low=low,
            high=high,
            workload=workload,
            device=device,
            provenance="estimated",
        )

    @property
    def unit(self) -> str:
        return METRICS[self.name].unit

    @property
    def label(self) -> str:
        """The name as objectives write it: `decode_ms@chat-4k`."""
        return f"{self.name}@{self.workload}" if self.workload else self.name


@dataclass(frozen=True, kw_only=True)
class Report:
    """A candidate's measurements, and the facts they hold under (corpus hash, seeds, versions)."""

    key: str
    measurements: tuple[Measurement, ...]
    facts: dict[str, str] = field(default_factory=dict)

    def value(self, label: str) -> float | None:
        """The value of `name` or `name@workload`; without a workload, that of the first one."""
        name, _, workload = label.partition("@")
        for m in self.measurements:
            if m.name == name and (not workload or m.workload == workload):
                return m.value
        return None

    def beside(self, known: Sequence[Measurement]) -> Self:
        """The same report after what was known before; where both have a metric, the report's."""
        own = {m.name for m in self.measurements}
        before = tuple(m for m in known if m.name not in own)
        return replace(self, measurements=before + self.measurements)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a message or a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        measurements = tuple(Measurement(**m) for m in data["measurements"])
        return cls(key=data["key"], measurements=measurements, facts=data["facts"])


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a candidate has no report: the stage it was in, the kind of fault, one line of reason."""

    key: str
    stage: str
    kind: FailureKind
    reason: str

    def plain(self) -> dict[str, Any]:
        """As plain data, for a message or a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        return cls(**data)
