"""Costs of an architecture on a target, and calibrations: tables and the plain data of `--json`."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...profilers.cluster import Cluster
from ...profilers.cost.work import cost_class
from ...profilers.memory import GIB, MARGIN, Verdict, verdict
from ...profilers.pricing import Cost, Pricing, TargetTimings, tokens_per_step
from ...profilers.report import Report
from ...profilers.timing.calibration import Calibration
from ...search_space.architecture import Architecture
from ...search_space.workload import Workload
from ..format import number
from ..palette import VERDICTS

MIN_FRACTION = 0.005  # of the time of a pass, for a line of its own


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """The cost of one pass (prefill, decoding step, training step) of a workload."""

    workload: str
    what: str
    cost: Cost

    def plain(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        cost = self.cost
        return {
            "workload": self.workload,
            "pass": self.what,
            "seconds": cost.seconds,
            "low": cost.low,
            "high": cost.high,
            "provenance": cost.provenance,
            "split": str(cost.split),
            "terms": [vars(term) for term in cost.terms],
        }


def explain(
    architecture: Architecture,
    target: Cluster,
    workloads: Sequence[Workload],
    timings: TargetTimings,
) -> list[PassCost]:
    """The cost of every pass of every workload. Raises ValueError for a target without FP8."""
    found = list[PassCost]()
    for workload in workloads:
        pricing = Pricing.for_architecture(architecture, target, timings, workload)
        passes: dict[str, Callable[..., Cost]] = {
            f"prefill of {workload.prefill_batch} x {workload.prefill_tokens:,}": pricing.prefill,
            f"decoding step of {workload.decode_batch} at {workload.decode_context:,}": (
                pricing.decode
            ),
        }
        if workload.train_batch is not None:
            what = f"training step of {workload.train_batch} x {workload.train_tokens:,}"
            passes[what] = pricing.train
        for what, price in passes.items():
            cost = price(architecture, workload)
            found.append(PassCost(workload=workload.name, what=what, cost=cost))
    return found


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether the memory of a workload fits each device of the target."""

    workload: str
    verdict: Verdict
    peak_gib: float
    high_gib: float
    device_gib: float


def fits(report: Report, target: Cluster, workloads: Sequence[Workload]) -> list[Fit]:
    """The verdict of each workload, from the peak memory in the report."""
    found = []
    for workload in workloads:
        peak = report.find(f"peak_gib@{workload.name}")
        assert peak is not None, "static metrics have a peak for every workload"
        found.append(
            Fit(
                workload=workload.name,
                verdict=verdict(peak, target.device.memory_gb),
                peak_gib=peak.value,
                high_gib=peak.high or peak.value,
                device_gib=MARGIN * target.device.memory_gb * 1e9 / GIB,
            )
        )
    return found


def fits_text(found: Sequence[Fit], target: Cluster) -> RenderableType:
    """One line per workload."""
    per_device = " per device" if target.count > 1 else ""
    return Group(
        *(
            Text.assemble(
                (fit.verdict, VERDICTS[fit.verdict]),
                f" {target.name} at {fit.workload}: {number(fit.peak_gib)} GiB (up to "
                f"{number(fit.high_gib)}) of {number(fit.device_gib)} usable{per_device}",
            )
            for fit in found
        )
    )


def explanation(
    architecture: Architecture,
    target: Cluster,
    workloads: Sequence[Workload],
    found: Sequence[PassCost],
) -> RenderableType:
    """The time of each pass by layer group and operator family, with the basis of each figure."""
    tokens = {w.name: tokens_per_step(architecture, w) for w in workloads}
    return Group(*(_one(architecture, target, part, tokens[part.workload]) for part in found))


def _one(
    architecture: Architecture, target: Cluster, part: PassCost, tokens: float
) -> RenderableType:
    cost = part.cost
    head = (
        f"{part.workload}: {part.what} on {target.name}"
        + (f" ({cost.split})" if target.count > 1 else "")
        + f": {number(1e3 * cost.seconds)} ms, 90% interval {number(1e3 * cost.low)} to "
        + f"{number(1e3 * cost.high)}, {cost.provenance}"
    )
    if tokens > 1 and part.what.startswith("decoding"):
        head += f"; {tokens:.2f} tokens per sequence"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layers", "kind", "operators"):
        table.add_column(title, no_wrap=True)
    for title in ("ms", "%"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("based on", no_wrap=True)
    hidden = 0.0
    for term in sorted(cost.terms, key=lambda term: -term.seconds):
        fraction = term.seconds / cost.seconds
        if fraction < MIN_FRACTION:
            hidden += term.seconds
            continue
        table.add_row(
            Text(term.group),
            _kind(architecture, term.group),
            term.family,
            number(1e3 * term.seconds),
            f"{100 * fraction:.1f}",
            term.provenance.replace("_", "-"),
        )
    if hidden:
        table.add_row("…", "", "", number(1e3 * hidden), f"{100 * hidden / cost.seconds:.1f}", "")
    sums: dict[str, float] = defaultdict(float)
    for term in cost.terms:
        sums[term.provenance] += term.seconds / cost.seconds
    foot = "based on: " + ", ".join(
        f"{100 * fraction:.0f}% {BASES[provenance]}"
        for provenance, fraction in sorted(sums.items(), key=lambda s: -s[1])
    )
    return Group(Text(head, style="bold"), table, Text(foot, style="dim"), Text())


BASES = {
    "timed": "blocks timed on this device",
    "calibrated": "operators timed on this device (calibrated)",
    "fitted": "public timings of this GPU (fitted)",
    "family": "public timings of its GPU family (family)",
    "transferred": "public timings of other families (transferred)",
    "stand_in": "similar operators, none of this kind was timed (stand-in)",
}


def _kind(architecture: Architecture, group: str) -> str:
    block = architecture.blocks.get(group)
    return block.kind if block else "group" if group.startswith("[") else ""


def calibration_summary(found: Calibration) -> dict[str, dict[str, float]]:
    """The number of points of each operator class, and the range of their times in ms."""
    times: dict[str, list[float]] = defaultdict(list)
    for call, seconds in found.timings:
        times[cost_class(call)].append(1e3 * seconds)
    return {
        name: {"points": len(part), "min_ms": min(part), "max_ms": max(part)}
        for name, part in times.items()
    }


def calibration_table(found: Calibration, summary: dict[str, dict[str, float]]) -> RenderableType:
    """The summary as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("operators", "points", "min ms", "max ms"):
        table.add_column(title, justify="left" if title == "operators" else "right")
    for name, part in summary.items():
        table.add_row(name, str(part["points"]), number(part["min_ms"]), number(part["max_ms"]))
    head = f"{found.device.name} calibrated on {len(found.timings)} points"
    return Group(Text(head, style="bold"), table)
