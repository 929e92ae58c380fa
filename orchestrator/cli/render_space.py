"""A checked search space as a table, and as the plain data of `--json`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...search_space.space import Sample, SearchSpace
from ...search_space.warm_start import starts
from .render import block_lines

if TYPE_CHECKING:  # it imports torch, which may be absent where triton is
    from ...profilers.kernel_support import UnsupportedChoice


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The GPU architectures that a space was checked for, and the choices without a kernel."""

    archs: tuple[str, ...]
    unsupported: "tuple[UnsupportedChoice, ...]"


def table(checked: SearchSpace, drawn: Sample, kernels: Kernels | None) -> RenderableType:
    """The choices, the legal fraction, what rejects the rest, missing kernels, an example.

    `kernels` is None where triton is not installed.
    """
    total = len(drawn.legal) + drawn.rejected.total()
    choices = Table(box=None, pad_edge=False, header_style="bold")
    choices.add_column("choice", no_wrap=True)
    choices.add_column("values")
    for name, domain in checked.domains.items():
        choices.add_row(Text(name), Text(_values(domain)))
    head = Text(f"{checked.name}: {checked.file.description}", style="bold")
    lines = [f"{len(drawn.legal)} of {total} random candidates are legal"]
    lines += [
        f"  {count} rejected by {constraint}: {drawn.reasons[constraint]}"
        for constraint, count in drawn.rejected.most_common()
    ]
    for start in starts(checked):
        if start.architecture:
            near = f"{start.architecture.key}  {start.architecture.pattern}"
            lines.append(f"warm start from {start.name}: {near}")
        else:
            lines.append(f"no warm start from {start.name}: {start.rejection}")
    lines += _kernel_lines(kernels)
    if drawn.legal:
        example = drawn.legal[0]
        lines += ["", f"example {example.key}  {example.pattern}"]
        lines += [f"  {line}" for line in block_lines(example)]
    return Group(head, Text(), choices, Text(), *(Text(line) for line in lines))


def _kernel_lines(kernels: Kernels | None) -> Iterator[str]:
    if kernels is None:
        yield "kernels were not checked: triton is not installed"
        return
    if not kernels.archs:
        yield "kernels were not checked: archfront has none for the target"
    elif not kernels.unsupported:
        yield f"every choice has a kernel on {', '.join(kernels.archs)}"
    for choice in kernels.unsupported:
        value = "" if choice.value is None else f" {choice.value}"
        constraint = next(iter(choice.constraints.values()))
        uses = ", ".join(choice.constraints)
        yield f"{choice.choice}{value} cannot run on {choice.arch} ({uses}): {constraint}"


def _values(domain: Any) -> str:
    fields = domain.model_dump(exclude={"when"})
    (kind, values), *_ = fields.items()
    when = "".join(f" when {field} is {wanted}" for field, wanted in domain.when.items())
    return f"{'' if kind == 'choices' else kind + ' '}{', '.join(map(str, values))}{when}"


def plain(checked: SearchSpace, drawn: Sample, kernels: Kernels | None) -> dict[str, Any]:
    """A checked space as plain data."""
    return {
        "space": checked.name,
        "choices": {
            name: domain.model_dump(mode="json") for name, domain in checked.domains.items()
        },
        "legal": len(drawn.legal),
        "rejected": dict(drawn.rejected),
        "without_kernel": None if kernels is None else [asdict(x) for x in kernels.unsupported],
        "example": drawn.legal[0].plain() if drawn.legal else None,
    }
