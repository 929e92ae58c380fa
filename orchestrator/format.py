"""Numbers, units, intervals and a study's headline as the terminal and the dashboard write them."""

from ..profilers.report import Measurement
from .store import Study

FRONT_LEGEND = "◆ knee · ± half-width of the 90% interval"


def number(value: float) -> str:
    """Three or four significant digits; whole numbers in the thousands are written out."""
    if value == int(value) and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def unit_text(unit: str) -> str:
    """The unit; empty for a count or a fraction."""
    return "" if unit in ("1", "fraction") else unit


def half_width(m: Measurement) -> str:
    """The half-width of the 90% interval; empty where the value is exact or has no interval."""
    if m.low is None or m.high is None or m.low == m.high:
        return ""
    return f" ±{(m.high - m.low) / 2:.2g}"


def interval(m: Measurement) -> str:
    """The 90% interval, `exact` for a count, or that one seed gives none."""
    if m.provenance == "counted":
        return "exact"
    if m.low is None or m.high is None:
        return "unknown (one seed)"
    return f"{number(m.low)} to {number(m.high)}"


def headline(study: Study, hypervolume: float | None) -> str:
    """How many trials of a study are complete, failed and rejected, and how good its front is."""
    counts = study.counts
    return (
        f"{counts.get('complete', 0)} trials complete, {counts.get('failed', 0)} failed, "
        f"{counts.get('rejected', 0)} rejected · front {study.front_size}"
        + (f" · hypervolume {hypervolume:.3f}" if hypervolume is not None else "")
    )
