"""Published architectures as tables, and as the plain data of `--json`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...search_space.accounting import StateFormat, cache_bytes, cache_bytes_at, parameters
from ...search_space.operators import NumberFormat
from ...search_space.published import Entry, figures
from ..palette import AGREEMENTS
from .render import block_lines


@dataclass(frozen=True, kw_only=True)
class View:
    """The point that cache sizes are shown at, and whether MTP modules are counted."""

    context: int = 131_072
    batch: int = 1
    kv: NumberFormat | None = None
    state: StateFormat = "fp32"
    mtp: bool = False


def plain_entry(name: str, entry: Entry, view: View) -> dict[str, Any]:
    """An entry with its counts, as plain data."""
    a = entry.architecture
    per_sequence = cache_bytes_at(a, view.context, kv=view.kv, state=view.state, mtp=view.mtp)
    return {
        "id": name,
        **entry.model_dump(mode="json", exclude={"architecture", "reference"}),
        "key": a.key,
        "pattern": a.pattern,
        "counted": asdict(parameters(a, mtp=view.mtp)),
        "cache": {
            **asdict(cache_bytes(a, kv=view.kv, state=view.state, mtp=view.mtp)),
            "at": {
                **asdict(view),
                "bytes_per_sequence": per_sequence,
                "bytes": view.batch * per_sequence,
            },
        },
        "reference": entry.reference.model_dump(mode="json"),
        "architecture": a.plain(),
    }


def table(entries: dict[str, Entry], view: View) -> RenderableType:
    """One line per model."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    columns: tuple[tuple[str, Literal["left", "right"]], ...] = (
        ("model", "left"),
        ("published\ntotal / active", "left"),
        ("counted\ntotal", "right"),
        ("\nactive", "right"),
        ("KV bytes\nper token", "right"),
        ("windowed KV\nMiB (max)", "right"),
        ("state\nMiB", "right"),
    )
    for title, side in columns:
        grid.add_column(title, justify=side, no_wrap=True)
    grid.add_column("layers", overflow="fold")
    for name, entry in entries.items():
        a, counts = entry.architecture, parameters(entry.architecture, mtp=view.mtp)
        caches = cache_bytes(a, kv=view.kv, state=view.state, mtp=view.mtp)
        active = "" if counts.active == counts.total else f"{counts.active:,}"
        grid.add_row(
            name,
            _stated(entry),
            f"{counts.total:,}" + ("" if entry.reference.total else " ?"),
            active,
            f"{caches.kv_bytes_per_token + caches.index_bytes_per_token:,}",
            _mib(caches.windowed_kv_bytes_cap),
            _mib(caches.state_bytes_per_sequence),
            a.pattern,
        )
    verified = sum(entry.reference.total is not None for entry in entries.values())
    foot = (
        f"{len(entries)} models, {verified} with a total that a public model class or checkpoint "
        "confirms exactly; ? marks those counted by our formulas only"
    )
    return Group(grid, Text(foot, style="dim"))


def entry_text(name: str, entry: Entry, view: View) -> RenderableType:
    """One model: its blocks, its counts, and what verifies them."""
    a, counts = entry.architecture, parameters(entry.architecture, mtp=view.mtp)
    caches = cache_bytes(a, kv=view.kv, state=view.state, mtp=view.mtp)
    per_sequence = cache_bytes_at(a, view.context, kv=view.kv, state=view.state, mtp=view.mtp)
    head = Text(f"{entry.name} · {entry.publisher} · {entry.release}", style="bold")
    shape = Text(
        f"{name} · {a.key} · d_model {a.d_model} · {entry.num_layers} layers · vocabulary "
        f"{a.vocab_size:,} · {a.pattern}"
    )
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("quantity", "counted", "reference", ""):
        grid.add_column(title, justify="right" if title in ("counted", "reference") else "left")
    for field, value in figures(a).model_dump().items():
        known = getattr(entry.reference, field)
        agreement = "" if known is None else "equal" if known == value else "DIFFERS"
        grid.add_row(
            field,
            "–" if value is None else f"{value:,}",
            "–" if known is None else f"{known:,}",
            Text(agreement, style=AGREEMENTS[agreement]),
        )
    verified_by = ", ".join(entry.reference.verified_by)
    scope = "MTP modules included" if view.mtp else "MTP modules not included"
    lines = [
        f"parameters, {scope}: {counts.total:,} total; {counts.active:,} active, "
        f"{counts.active_no_input_embedding:,} without the input embedding, "
        f"{counts.active_no_embeddings:,} without input embedding and head",
        f"caches at {view.context:,} tokens x {view.batch}, KV {view.kv or 'as planned'}, "
        f"state {view.state}: {per_sequence / 2**20:,.1f} MiB per sequence, "
        f"{view.batch * per_sequence / 2**30:,.2f} GiB in total; "
        f"{caches.kv_bytes_per_token:,} B per token",
        f"published: {_stated(entry)} ({entry.published.source})",
        f"verified by: {verified_by or 'nothing, counted by our formulas only'}",
        *(f"note: {note}" for note in entry.notes),
        *(f"doubt: {doubt}" for doubt in entry.doubts),
        *(f"source: {source}" for source in entry.sources),
    ]
    blocks = [Text(f"  {line}") for line in block_lines(a)]
    return Group(head, shape, *blocks, Text(), grid, Text(), *(Text(line) for line in lines))


def _stated(entry: Entry) -> str:
    active = f" / {entry.published.active}" if entry.published.active else ""
    return entry.published.total + active


def _mib(count: float | None) -> str:
    return f"{count / 2**20:,.1f}" if count else ""
