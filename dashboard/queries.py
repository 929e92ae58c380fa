"""Data frames of a store, cached until the study they are of is written again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd
import streamlit as st

from ..orchestrator.export import as_yaml, best_known, exported
from ..orchestrator.format import interval, number, unit_text
from ..orchestrator.queries import PublishedMetric, knee_index, published_metrics
from ..orchestrator.store import FrontStep, Store, Study, Trial, TrialMeasurement, open_store
from ..search_space.architecture import Architecture
from ..search_space.metrics import MetricRef

_CANDIDATE = ("number", "key", "pattern", "active_params", "feasible", "on_front")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A metric of a study; `source` is its provenance, its typical error and its devices."""

    label: str
    unit: str
    better: Literal["lower", "higher"] | None
    source: str

    @property
    def name(self) -> str:
        """The label with the direction of better values and the unit."""
        arrow = {"lower": " ↓", "higher": " ↑", None: ""}[self.better]
        return f"{self.label}{arrow}" + (f" [{self.unit}]" if self.unit else "")


class Details(NamedTuple):
    """One architecture with its newest trial in a study, and its export file."""

    architecture: Architecture
    trial: Trial
    measurements: pd.DataFrame
    facts: Mapping[str, str]
    yaml: str


@st.cache_resource(max_entries=2, show_spinner=False)
def opened(url: str) -> Store:
    """The store, opened once for all viewers. Raises InputError."""
    return open_store(url, readonly=True)


# The time of the last write identifies the contents of a study.
_per_study = st.cache_data(
    max_entries=8,
    show_spinner=False,
    hash_funcs={Study: lambda study: (study.name, study.created, study.updated)},
)


def overview(studies: list[Study]) -> pd.DataFrame:
    """One row per study."""
    return pd.DataFrame(
        {
            "study": study.name,
            "status": study.status,
            "complete": study.counts.get("complete", 0),
            "of": study.trials_wanted,
            "failed": study.counts.get("failed", 0),
            "rejected": study.counts.get("rejected", 0),
            "front": study.front_size,
            "target": study.target,
            "sampler": study.sampler,
            "objectives": ", ".join(o.label for o in study.objectives),
            "created": study.created,
        }
        for study in studies
    )


@_per_study
def front_steps(_store: Store, study: Study) -> pd.DataFrame:
    """Size and hypervolume of the front after each completed trial, in order of completion."""
    return pd.DataFrame(_store.hypervolume_history(study.name), columns=list(FrontStep._fields))


@_per_study
def candidates(_store: Store, study: Study) -> pd.DataFrame:
    """One row per completed trial, by number; `knee` marks the knee of the front."""
    trials = [trial for trial in _store.trials(study.name) if trial.state == "complete"]
    front = [trial for trial in trials if trial.on_front]
    best = front[knee_index(study, front)].number if front else None
    rows = [[getattr(trial, field) for field in _CANDIDATE] for trial in trials]
    frame = pd.DataFrame(rows, columns=list(_CANDIDATE))
    flags = {"feasible": bool, "on_front": bool}
    return frame.astype(flags).assign(knee=frame["number"] == best)


@_per_study
def faults(_store: Store, study: Study) -> pd.DataFrame:
    """Failed and rejected trials: how many for each reason, and which."""
    numbers: dict[tuple[str, ...], list[int]] = {}
    for t in _store.trials(study.name):
        if t.state in ("failed", "rejected"):
            fault = (t.state, t.stage or "", t.kind or "", t.reason or "")
            numbers.setdefault(fault, []).append(t.number)
    rows = [(*fault, len(these), ", ".join(map(str, these))) for fault, these in numbers.items()]
    columns = ["state", "stage", "kind", "reason", "trials", "numbers"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("trials", ascending=False, kind="stable", ignore_index=True)


@_per_study
def measurements(_store: Store, study: Study) -> pd.DataFrame:
    """Every measurement of the study with its `label`: `decode_ms@chat-4k`."""
    rows = _store.measurements(study.name)
    frame = pd.DataFrame(rows, columns=list(TrialMeasurement._fields))
    frame[["value", "low", "high"]] = frame[["value", "low", "high"]].astype(float)
    at = [str(MetricRef(row.name, row.workload)) for row in rows]
    return frame.assign(label=pd.Series(at, dtype=object))


@_per_study
def quantities(_store: Store, study: Study) -> dict[str, Quantity]:
    """The metrics that the candidates have, by label, the objectives first."""
    found = measurements(_store, study)
    labels = list(found["label"].unique())
    wanted = [
        next((x for x in labels if o.label in (x, MetricRef.parse(x).name)), None)
        for o in study.objectives
    ]
    order = dict.fromkeys([*(label for label in wanted if label), *labels])
    groups = dict(tuple(found.groupby("label")))
    return {label: _quantity(label, groups[label]) for label in order}


def _quantity(label: str, rows: pd.DataFrame) -> Quantity:
    metric = MetricRef.parse(label).metric
    return Quantity(
        label=label,
        unit=unit_text(metric.unit),
        better=metric.better,
        source=" · ".join(
            [
                "/".join(rows["provenance"].unique()),
                _typical_error(rows),
                *rows["device"].dropna().unique(),
            ]
        ),
    )


def _typical_error(rows: pd.DataFrame) -> str:
    """The median over the candidates of the half-width relative to the value."""
    if set(rows["provenance"]) == {"counted"}:
        return "exact"
    rows = rows.loc[rows["value"] != 0]
    errors = ((rows["high"] - rows["low"]) / 2 / rows["value"].abs()).dropna()
    return f"±{100 * errors.median():.2g}%" if len(errors) else "error unknown (one seed)"


def points(
    candidates: pd.DataFrame, measurements: pd.DataFrame, axes: Mapping[str, str]
) -> pd.DataFrame:
    """The candidates with the columns `x_value`, `x_low` and `x_high` for axes {"x": label}."""
    frame = candidates
    for axis, label in axes.items():
        rows = measurements.loc[measurements["label"] == label, ["number", "value", "low", "high"]]
        named = {field: f"{axis}_{field}" for field in ("value", "low", "high")}
        frame = frame.merge(rows.rename(columns=named), on="number", how="left")
    return frame.dropna(subset=["x_value", "y_value"])


@_per_study
def published_models(_store: Store, study: Study) -> pd.DataFrame:
    """The static metrics of the published models under the study's plan, one per row."""
    rows = published_metrics(_store, study)
    return pd.DataFrame(rows, columns=list(PublishedMetric._fields))


def model_points(models: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The models that have both metrics: `model`, `pattern`, `x_value`, `y_value`."""
    values = models.pivot_table(index=["model", "pattern"], columns="label", values="value")
    if not {x, y} <= set(values.columns):
        return pd.DataFrame(columns=["model", "pattern", "x_value", "y_value"])
    return pd.DataFrame({"x_value": values[x], "y_value": values[y]}).dropna().reset_index()


def front_table(
    candidates: pd.DataFrame, measurements: pd.DataFrame, objectives: list[Quantity]
) -> pd.DataFrame:
    """The front, best first in the first objective; ± is the half-width of the 90% interval."""
    frame = candidates[candidates["on_front"]].set_index("number")
    table = pd.DataFrame({"key": frame["key"]})
    table[""] = ["◆" if knee else "" for knee in frame["knee"]]
    for quantity in objectives:
        rows = measurements[measurements["label"] == quantity.label].set_index("number")
        table[quantity.name] = rows["value"]
        table[f"± {quantity.label}"] = (rows["high"] - rows["low"]) / 2
    table["active M params"] = frame["active_params"] / 1e6
    table["layers"] = frame["pattern"]
    first = objectives[0]
    return table.sort_values(first.name, ascending=first.better == "lower").reset_index()


@_per_study
def details(_store: Store, study: Study, key: str) -> Details:
    """An architecture as its newest trial in the study measured it. Raises InputError."""
    trial, report = best_known(_store, key, study.name)
    config = exported(_store, key, study.name)
    return Details(
        architecture=config.architecture,
        trial=trial,
        measurements=pd.DataFrame(
            {
                "metric": m.name,
                "value": number(m.value),
                "unit": unit_text(m.unit),
                "90% interval": interval(m),
                "provenance": [m.provenance],
                "workload": m.workload or "",
                "device": m.device or "",
                "description": m.ref.metric.description,
            }
            for m in report.measurements
        ),
        facts=report.facts,
        yaml=as_yaml(config),
    )
