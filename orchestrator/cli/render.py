"""Results as people read them in a terminal, and as the plain data of `--json`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...profilers.report import Measurement, Report
from ...search_space.architecture import Architecture
from ...search_space.metrics import MetricRef
from ...search_space.space import Sample, SearchSpace
from ...search_space.warm_start import starts
from ..pareto import knee
from ..store import FrontStep, Store, Study, Trial

if TYPE_CHECKING:
    from ...profilers.kernel_support import Lack

COLOURS = {"measured": "green", "composed": "cyan", "estimated": "yellow", "counted": "blue"}
MAX_FRONT_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A trial on the front with its report."""

    trial: Trial
    report: Report

    def measurement(self, label: str) -> Measurement | None:
        return find(self.report, label)


def find(report: Report, label: str) -> Measurement | None:
    """The measurement that an objective's label names; the first workload's without a workload."""
    wanted = MetricRef.parse(label)
    return next((m for m in report.measurements if wanted.selects(m.ref)), None)


def front_entries(store: Store, study: Study) -> list[Entry]:
    """The front, best first in the first objective."""
    entries = []
    for trial in store.front(study.name):
        report = store.report(study.name, trial.number)
        assert report is not None, "a trial on the front has a report"
        entries.append(Entry(trial=trial, report=report))
    sign = study.signs[0]
    return sorted(entries, key=lambda entry: sign * (entry.trial.values or [0.0])[0])


def knee_of(study: Study, entries: Sequence[Entry]) -> int:
    """The index of the front's knee."""
    return knee([entry.trial.values or [] for entry in entries], study.signs)


def number(value: float) -> str:
    """Three or four digits that matter; whole numbers in thousands stay whole."""
    if value == int(value) and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def unit_text(unit: str) -> str:
    """Nothing for a count or a share."""
    return "" if unit in ("1", "fraction") else unit


def spread(m: Measurement) -> str:
    """Half the width of the 90% interval; nothing where it is counted or not known."""
    if m.low is None or m.high is None or m.low == m.high:
        return ""
    return f" ±{(m.high - m.low) / 2:.2g}"


def marked(m: Measurement | None) -> Text:
    """A value with its error, in the color of its provenance."""
    if m is None:
        return Text("–", style="dim")
    return Text(f"{number(m.value)}{spread(m)}", style=COLOURS[m.provenance])


def front(study: Study, entries: Sequence[Entry], steps: Sequence[FrontStep]) -> RenderableType:
    """The front as a table; the knee is marked."""
    volume = steps[-1].hypervolume if steps else None
    head = (
        f"{study.name}: {study.counts.get('complete', 0)} trials done, "
        f"{study.counts.get('failed', 0)} failed, {study.counts.get('rejected', 0)} refused · "
        f"front {len(entries)}"
        + (f" · hypervolume {volume:.3f}" if volume is not None else "")
        + f" · target {study.target}"
    )
    if not entries:
        return Text(head + "\nno candidate satisfies the constraints yet")
    best = knee_of(study, entries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    for objective in study.objectives:
        m = entries[0].measurement(objective.label)
        unit = unit_text(MetricRef.parse(objective.label).metric.unit)
        arrow = "↓" if objective.better == "lower" else "↑"
        where = m.provenance if m else ""
        table.add_column(
            f"{objective.label} {arrow}\n{where} {unit}".rstrip(), justify="right", no_wrap=True
        )
    table.add_column("active\nM params", justify="right", no_wrap=True)
    table.add_column("layers", no_wrap=True)
    shown = sorted({best, *range(min(len(entries), MAX_FRONT_ROWS))})
    for index in shown:
        entry = entries[index]
        table.add_row(
            entry.report.key + (" ◆" if index == best else ""),
            *(marked(entry.measurement(o.label)) for o in study.objectives),
            f"{(entry.trial.active_params or 0) / 1e6:,.1f}",
            entry.trial.pattern or "",
        )
    foot = "◆ knee · ± half of the 90% interval"
    if len(shown) < len(entries):
        foot += f" · {len(entries) - len(shown)} more: archfront front {study.name} --json"
    return Group(Text(head, style="bold"), Text(), table, Text(foot, style="dim"))


def next_commands(study: Study, entries: Sequence[Entry], at: str) -> str:
    """What to type next, after a search."""
    if not entries:
        return f"next:  archfront resume {study.name} --trials {2 * study.trials_wanted}{at}"
    key = entries[knee_of(study, entries)].report.key
    return "\n".join(
        (
            "",
            f"next:  archfront show {key}{at}",
            f"       archfront export {key} -o chosen.yaml{at}",
            f"       archfront dashboard{at}",
            f"       archfront resume {study.name} --trials {2 * study.trials_wanted}{at}",
        )
    )


def plain_front(
    study: Study, entries: Sequence[Entry], steps: Sequence[FrontStep]
) -> dict[str, Any]:
    """The front as plain data."""
    return {
        "study": plain_study(study),
        "knee": entries[knee_of(study, entries)].report.key if entries else None,
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


def plain_study(study: Study) -> dict[str, Any]:
    """A study as plain data."""
    return {
        "name": study.name,
        "space": study.space_name,
        "status": study.status,
        "target": study.target,
        "seed": study.seed,
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
    for title in (
        "study",
        "status",
        "done",
        "failed",
        "rejected",
        "front",
        "target",
        "objectives",
        "age",
    ):
        table.add_column(
            title, justify="right" if title in ("done", "failed", "rejected", "front") else "left"
        )
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
            ", ".join(o.label for o in study.objectives),
            str(age).split(".")[0],
        )
    return table


def candidate(architecture: Architecture, trial: Trial, report_: Report) -> RenderableType:
    """One architecture with the trial that measured it."""
    where = "on the front" if trial.on_front else "not on the front"
    origin = Text(f"trial {trial.number} of {trial.study}, {where}", style="dim")
    return Group(report(architecture, report_), Text(), origin)


def report(architecture: Architecture, found: Report) -> RenderableType:
    """An architecture's blocks and every number of its report."""
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
            Text(m.provenance, style=COLOURS[m.provenance]),
            m.device or "",
        )
    notes = ", ".join(f"{name} {value[:12]}" for name, value in found.facts.items())
    foot = (Text(notes, style="dim"),) if notes else ()
    return Group(head, shape, *blocks, Text(), table, *foot)


def together(*parts: RenderableType) -> RenderableType:
    """Parts below each other, an empty line between."""
    lines = [line for part in parts for line in (Text(), part)]
    return Group(*lines[1:])


def interval(m: Measurement) -> str:
    """The 90% interval, or that nothing is known about it."""
    if m.provenance == "counted":
        return "exact"
    if m.low is None or m.high is None:
        return "unknown (one seed)"
    return f"{number(m.low)} to {number(m.high)}"


def block_lines(architecture: Architecture) -> list[str]:
    """Each block on a line, what is at its default left out."""
    lines = []
    for symbol, block in architecture.blocks.items():
        fields = _flat(block.model_dump(mode="json", exclude={"kind"}))
        lines.append(f"{symbol} {block.kind}: " + ", ".join(f"{k} {v}" for k, v in fields.items()))
    return lines


@dataclass(frozen=True, kw_only=True)
class Column:
    """One architecture in a comparison."""

    name: str
    architecture: Architecture
    report: Report

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, "architecture": self.architecture.plain(), **self.report.plain()}


def compare(columns: Sequence[Column]) -> RenderableType:
    """Side by side: fields that differ, then every number that any of them has."""
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
        table.add_row(Text(title), *(marked(find(c.report, label)) for c in columns))
    legend = Text("green measured · cyan composed · yellow estimated · blue counted", style="dim")
    return Group(table, legend)


def _flat(data: Any, name: str = "") -> dict[str, str]:
    if isinstance(data, dict):
        return {
            k: v for key, inner in data.items() for k, v in _flat(inner, f"{name}.{key}").items()
        }
    return {name.lstrip("."): str(data)}


def space(checked: SearchSpace, drawn: Sample, lacking: "Sequence[Lack] | None") -> RenderableType:
    """A space: its choices, how much of it is legal, what refuses the rest, what has no kernel
    (None: not looked for), one example."""
    total = len(drawn.legal) + drawn.rejected.total()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("choice", no_wrap=True)
    table.add_column("values")
    for name, domain in checked.domains.items():
        table.add_row(Text(name), Text(_values(domain)))
    lines = [
        Text(f"{checked.name}: {checked.file.description}", style="bold"),
        Text(),
        table,
        Text(),
    ]
    lines.append(Text(f"{len(drawn.legal)} of {total} random draws are legal"))
    lines += [
        Text(f"  {count} refused by {law}: {drawn.reasons[law]}")
        for law, count in drawn.rejected.most_common()
    ]
    for start in starts(checked):
        if start.architecture:
            near = f"{start.architecture.key}  {start.architecture.pattern}"
            lines.append(Text(f"starts near {start.name}: {near}"))
        else:
            lines.append(Text(f"cannot start near {start.name}: {start.rejection}"))
    lines += [Text(line) for line in _lacking(lacking)]
    if drawn.legal:
        example = drawn.legal[0]
        lines += [Text(), Text(f"for example {example.key}  {example.pattern}")]
        lines += [Text(f"  {line}") for line in block_lines(example)]
    return Group(*lines)


def _lacking(lacking: "Sequence[Lack] | None") -> Iterator[str]:
    from ...profilers.kernel_support import ARCHS  # here, since it brings torch

    if lacking is None:
        yield "kernels were not looked at: triton is not installed here"
    elif not lacking:
        yield f"every choice has a kernel on {', '.join(ARCHS)}"
    for lack in lacking or ():
        value = "" if lack.value is None else f" {lack.value}"
        law = next(iter(lack.constraints.values()))
        yield f"{lack.choice}{value} cannot run on {lack.arch} ({', '.join(lack.constraints)}): {law}"


def _values(domain: Any) -> str:
    form = domain.model_dump(exclude={"when"})
    (kind, values), *_ = form.items()
    when = "".join(f" when {field} is {wanted}" for field, wanted in domain.when.items())
    return f"{'' if kind == 'choices' else kind + ' '}{', '.join(map(str, values))}{when}"


def plain_space(
    checked: SearchSpace, drawn: Sample, lacking: "Sequence[Lack] | None"
) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "space": checked.name,
        "choices": {
            name: domain.model_dump(mode="json") for name, domain in checked.domains.items()
        },
        "legal": len(drawn.legal),
        "rejected": dict(drawn.rejected),
        "without_kernel": None if lacking is None else [asdict(lack) for lack in lacking],
        "example": drawn.legal[0].plain() if drawn.legal else None,
    }
