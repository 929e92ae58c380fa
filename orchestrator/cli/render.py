"""Studies, fronts, architectures and comparisons as tables, and as the plain data of `--json`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...profilers.report import Measurement, Report
from ...search_space.architecture import Architecture
from ...search_space.metrics import MetricRef
from ..format import FRONT_LEGEND, half_width, headline, interval, number, unit_text
from ..palette import PROVENANCES
from ..queries import FrontEntry, knee_index
from ..store import FrontStep, Study, Trial

MAX_FRONT_ROWS = 20


def value_text(m: Measurement | None) -> Text:
    """A value with the half-width of its interval, in the color of its provenance."""
    if m is None:
        return Text("–", style="dim")
    return Text(f"{number(m.value)}{half_width(m)}", style=PROVENANCES[m.provenance].terminal)


def front(
    study: Study, entries: Sequence[FrontEntry], steps: Sequence[FrontStep]
) -> RenderableType:
    """The front as a table; the knee is marked."""
    volume = steps[-1].hypervolume if steps else None
    head = f"{study.name}: {headline(study, volume)} · target {study.target}"
    if not entries:
        return Text(head + "\nno candidate satisfies the constraints yet")
    best = _knee(study, entries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    for objective in study.objectives:
        m = entries[0].measurement(objective.label)
        unit = unit_text(MetricRef.parse(objective.label).metric.unit)
        arrow = "↓" if objective.better == "lower" else "↑"
        provenance = m.provenance if m else ""
        title = f"{objective.label} {arrow}\n{provenance} {unit}".rstrip()
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("active\nM params", justify="right", no_wrap=True)
    table.add_column("layers", no_wrap=True)
    shown = sorted({best, *range(min(len(entries), MAX_FRONT_ROWS))})
    for index in shown:
        entry = entries[index]
        table.add_row(
            entry.report.key + (" ◆" if index == best else ""),
            *(value_text(entry.measurement(o.label)) for o in study.objectives),
            f"{(entry.trial.active_params or 0) / 1e6:,.1f}",
            entry.trial.pattern or "",
        )
    foot = FRONT_LEGEND
    if len(shown) < len(entries):
        foot += f" · {len(entries) - len(shown)} more: archfront front {study.name} --json"
    return Group(Text(head, style="bold"), Text(), table, Text(foot, style="dim"))


def plain_front(
    study: Study, entries: Sequence[FrontEntry], steps: Sequence[FrontStep]
) -> dict[str, Any]:
    """The front as plain data."""
    return {
        "study": plain_study(study),
        "knee": entries[_knee(study, entries)].report.key if entries else None,
        "hypervolume": steps[-1].hypervolume if steps else None,
        "front": [
            {
                "trial": entry.trial.number,
                "pattern": entry.trial.pattern,
                "values": list(entry.trial.values or ()),
                **entry.report.plain(),
            }
            for entry in entries
        ],
    }


def _knee(study: Study, entries: Sequence[FrontEntry]) -> int:
    return knee_index(study, [entry.trial for entry in entries])


def plain_study(study: Study) -> dict[str, Any]:
    """A study as plain data."""
    return {
        "name": study.name,
        "space": study.space_name,
        "status": study.status,
        "target": study.target,
        "seed": study.seed,
        "sampler": study.sampler,
        "trials_wanted": study.trials_wanted,
        "trials": dict(study.counts),
        "front_size": study.front_size,
        "objectives": [{"label": o.label, "better": o.better} for o in study.objectives],
        "created": study.created.isoformat(),
    }


def studies(found: Sequence[Study]) -> RenderableType:
    """All studies as a table."""
    if not found:
        return Text("no study yet: archfront search SPACE.yaml")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("study", "status"):
        table.add_column(title)
    for title in ("complete", "failed", "rejected", "front"):
        table.add_column(title, justify="right")
    for title in ("target", "sampler", "objectives", "age"):
        table.add_column(title)
    for study in found:
        age = datetime.now(UTC) - study.created
        table.add_row(
            study.name,
            study.status,
            f"{study.counts.get('complete', 0)}/{study.trials_wanted}",
            str(study.counts.get("failed", 0)),
            str(study.counts.get("rejected", 0)),
            str(study.front_size),
            study.target,
            study.sampler,
            ", ".join(o.label for o in study.objectives),
            str(age).split(".")[0],
        )
    return table


def candidate(architecture: Architecture, trial: Trial, report_: Report) -> RenderableType:
    """One architecture, its report, and the trial that the report is from."""
    front = "on the front" if trial.on_front else "not on the front"
    origin = Text(f"trial {trial.number} of {trial.study}, {front}", style="dim")
    return Group(report(architecture, report_), Text(), origin)


def report(architecture: Architecture, found: Report) -> RenderableType:
    """The blocks of an architecture and all measurements of its report."""
    head = Text(f"{found.key}  {architecture.pattern}", style="bold")
    shape = Text(
        f"d_model {architecture.d_model} · {architecture.num_layers} layers · vocabulary "
        f"{architecture.vocab_size:,} · FP8: {', '.join(architecture.precision.fp8) or 'none'}"
    )
    blocks = [Text(f"  {line}") for line in block_lines(architecture)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("metric", "value", "unit", "90% interval", "", "device"):
        table.add_column(title, justify="right" if title == "value" else "left", no_wrap=True)
    for m in found.measurements:
        table.add_row(
            m.label,
            number(m.value),
            unit_text(m.unit),
            interval(m),
            Text(m.provenance, style=PROVENANCES[m.provenance].terminal),
            m.device or "",
        )
    notes = ", ".join(f"{name} {value[:12]}" for name, value in found.facts.items())
    foot = (Text(notes, style="dim"),) if notes else ()
    return Group(head, shape, *blocks, Text(), table, *foot)


def stacked(*parts: RenderableType) -> RenderableType:
    """Parts below each other, separated by an empty line."""
    lines = [line for part in parts for line in (Text(), part)]
    return Group(*lines[1:])


def block_lines(architecture: Architecture) -> list[str]:
    """One line per block with its fields."""
    lines = []
    for symbol, block in architecture.blocks.items():
        fields = _flat(block.model_dump(mode="json", exclude={"kind"}))
        lines.append(f"{symbol} {block.kind}: " + ", ".join(f"{k} {v}" for k, v in fields.items()))
    return lines


@dataclass(frozen=True, kw_only=True)
class Column:
    """One architecture of a comparison."""

    name: str
    architecture: Architecture
    report: Report

    def plain(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"name": self.name, "architecture": self.architecture.plain(), **self.report.plain()}


def compare(columns: Sequence[Column]) -> RenderableType:
    """The fields that differ, then every metric that any of the architectures has."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for c in columns:
        table.add_column(c.name, justify="right", overflow="fold")
    fields = [_flat(c.architecture.plain()) for c in columns]
    for name in dict.fromkeys(name for field in fields for name in field):
        values = [field.get(name, "–") for field in fields]
        if len(set(values)) > 1:
            table.add_row(name, *values)
    table.add_section()
    for label in dict.fromkeys(m.label for c in columns for m in c.report.measurements):
        unit = unit_text(MetricRef.parse(label).metric.unit)
        title = f"{label} [{unit}]" if unit else label
        table.add_row(Text(title), *(value_text(c.report.find(label)) for c in columns))
    legend = " · ".join(f"{color.terminal} {name}" for name, color in PROVENANCES.items())
    return Group(table, Text(legend, style="dim"))


def _flat(data: Any, name: str = "") -> dict[str, str]:
    if isinstance(data, dict):
        return {
            k: v for key, inner in data.items() for k, v in _flat(inner, f"{name}.{key}").items()
        }
    return {name.lstrip("."): str(data)}
