"""The results a profile can have: a Report of Measurements, or a Failure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from ..search_space.metrics import METRICS, MetricRef

# measured: on the device named. composed: summed from timings of blocks. estimated: by the cost
# model. counted: by formula, exact.
Provenance = Literal["measured", "composed", "estimated", "counted"]
FailureKind = Literal["oom", "nan", "crash", "hang", "error", "missing", "lost"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One value of a metric, with its provenance and its 90% interval."""

    name: str
    """A metric of search_space/metrics.py, which has its unit."""
    value: float
    provenance: Provenance
    device: str | None = None
    """What it was measured on or estimated for; None where no device is involved."""
    workload: str | None = None
    """Name of the workload, for a metric that is per workload."""
    low: float | None = None
    """Lower end of the 90% interval: `value` where it is counted, None where the interval is
    unknown (one seed), which is not an interval of width zero."""
    high: float | None = None
    """Upper end of the 90% interval."""
    rung: int | None = None
    """Index of the rung of the plan at which it was measured; None for what training does not
    change."""

    @classmethod
    def counted(cls, name: str, value: float, *, workload: str | None = None) -> Self:
        """An exact number: its interval is the value itself."""
        return cls(
            name=name, value=value, low=value, high=value, provenance="counted", workload=workload
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
        """A value of the cost model."""
        return cls(
            name=name,
            value=value,
            low=low,
            high=high,
            provenance="estimated",
            workload=workload,
            device=device,
        )

    @classmethod
    def measured(
        cls,
        name: str,
        value: float,
        *,
        device: str,
        low: float | None = None,
        high: float | None = None,
        workload: str | None = None,
        rung: int | None = None,
    ) -> Self:
        """A value taken on `device`."""
        return cls(
            name=name,
            value=value,
            low=low,
            high=high,
            provenance="measured",
            workload=workload,
            device=device,
            rung=rung,
        )

    @property
    def unit(self) -> str:
        """The unit of the metric, see search_space/metrics.py."""
        return METRICS[self.name].unit

    @property
    def ref(self) -> MetricRef:
        """The metric and workload that it is a value of."""
        return MetricRef(self.name, self.workload)

    @property
    def label(self) -> str:
        """The name as objectives have it: `decode_ms@chat-4k`."""
        return str(self.ref)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A candidate's measurements at one rung of the plan.

    `facts` are the conditions they hold under: corpus hash, seeds, versions.
    """

    key: str
    measurements: tuple[Measurement, ...]
    facts: dict[str, str] = field(default_factory=dict)
    rung: int = 0
    """Index of the rung; the last rung's report is the trial's result."""

    def find(self, label: str) -> Measurement | None:
        """The measurement of `name` or `name@workload`; without a workload, that of the first."""
        wanted = MetricRef.parse(label)
        return next((m for m in self.measurements if wanted.selects(m.ref)), None)

    def value(self, label: str) -> float | None:
        """The value of `name` or `name@workload`; without a workload, that of the first one."""
        found = self.find(label)
        return None if found is None else found.value

    def beside(self, known: Sequence[Measurement]) -> Self:
        """The same report preceded by `known`, without the metrics that the report has itself."""
        own = {m.name for m in self.measurements}
        before = tuple(m for m in known if m.name not in own)
        return replace(self, measurements=before + self.measurements)

    def plain(self) -> dict[str, Any]:
        """Plain data for a message or a file; a rung at its default is left out."""
        data = asdict(self)
        for record, default in ((data, 0), *((m, None) for m in data["measurements"])):
            if record["rung"] == default:
                del record["rung"]
        return data

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """Read what `plain` gives."""
        measurements = tuple(Measurement(**m) for m in data["measurements"])
        return cls(**{**data, "measurements": measurements})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a candidate has no report: the stage it was in, the kind of fault, one line of reason."""

    key: str
    stage: str
    kind: FailureKind
    reason: str

    def plain(self) -> dict[str, Any]:
        """Plain data for a message or a file; `from_plain` reads it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """Read what `plain` gives."""
        return cls(**data)
