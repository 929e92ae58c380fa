"""Reading and checking of space files, before the first candidate is drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .architecture import Architecture, Norm, Precision
from .blocks.kinds import AnyBlock
from .constraints import parse_constraint
from .document import Document, FieldPath, constraint_of, nearest, place_of, read_document, validate
from .domain import DOMAINS, Domain, LogRange
from .layout import Layout
from .metrics import METRICS, MetricRef
from .pattern import PatternError, unroll
from .published import find, names
from .space import FREE, FREE_FIELDS, LAYOUT_ORDER, SearchSpace, SpaceFile, sample

_PROBE_DRAWS = 64
_PARTS = {"layout": Layout, "norm": Norm, "precision": Precision}


def load_space(path: Path) -> SearchSpace:
    """Read and check a space file. Raises InputError, one line per finding."""
    return check_space(read_document(path))


def check_space(document: Document) -> SearchSpace:
    """Check a space document: fields, choices, conditions, names, and that a candidate exists.

    Raises InputError, one line per finding.
    """
    file = validate(SpaceFile, document)
    domains = dict(_domains(document, file.architecture, ("architecture",)))
    _check_shape(document, file)
    _check_values(document, file.architecture, domains)
    _check_symbols(document, file.architecture, domains)
    _check_patterns(document, file.architecture, domains)
    _check_conditions(document, file.architecture, domains)
    _check_names(document, file)
    architecture_constraints = []
    for index, text in enumerate(file.architecture_constraints):
        try:
            architecture_constraints.append(parse_constraint(text))
        except ValueError as error:
            raise document.error(("architecture_constraints", index), str(error)) from None
    space = SearchSpace(
        document=document,
        file=file,
        domains=domains,
        architecture_constraints=tuple(architecture_constraints),
    )
    _check_reachable(space)
    return space


def _domains(document: Document, template: Any, path: FieldPath) -> Iterator[tuple[str, Domain]]:
    """The dotted name and the domain of every choice in the template."""
    if not isinstance(template, dict):
        return
    if field := next((field for field in DOMAINS if field in template), None):
        yield _name(path), validate(DOMAINS[field], document, template, path)
        return
    for field, value in template.items():
        yield from _domains(document, value, (*path, field))


def _name(path: FieldPath) -> str:
    """The dotted name of a field in parameters and conditions, without `architecture`."""
    return ".".join(str(part) for part in path[1:])


def _path(name: str) -> FieldPath:
    return ("architecture", *name.split("."))


def _check_shape(document: Document, file: SpaceFile) -> None:
    template, at = file.architecture, ("architecture",)
    known = {*Architecture.model_fields, "layout"} - {"name"}
    for field in template:
        if field not in known:
            raise document.error((*at, field), f"unknown field{nearest(field, known)}")
    for field in ("d_model", "vocab_size", "blocks"):
        if field not in template:
            raise document.error((*at, field), "required field is missing")
    if ("layout" in template) == ("pattern" in template):
        raise document.error(at, "an architecture has either a layout or a pattern")
    blocks = template["blocks"]
    for part in (part for part in (*_PARTS, "blocks") if part in template):
        if not isinstance(template[part], dict) or not template[part]:
            raise document.error(
                (*at, part), f"expected a mapping of fields, got {template[part]!r}"
            )
    for symbol, block in blocks.items():
        if not isinstance(block, dict):
            raise document.error((*at, "blocks", symbol), f"expected a block, got {block!r}")
    free = [s for s, block in blocks.items() if FREE in map(block.get, FREE_FIELDS)]
    if free and file.budget is None:
        raise document.error((*at, "blocks", free[0]), "a free width needs a budget that solves it")
    if file.budget and not free:
        fault = "a budget needs a free width, write width: free or d_expert: free"
        raise document.error(("budget",), fault)


def _check_values(document: Document, template: dict[str, Any], domains: dict[str, Domain]) -> None:
    """Validate each value of each choice in its record.

    Relations between several choices are checked when a candidate is drawn.
    """
    records: list[tuple[FieldPath, Any]] = [
        (("architecture", part), record) for part, record in _PARTS.items() if part in template
    ]
    records += [(("architecture", "blocks", symbol), AnyBlock) for symbol in template["blocks"]]
    for path, kind in records:
        inside = [name for name in domains if name.startswith(_name(path) + ".")]
        trials = [(name, value) for name in inside for value in domains[name].values]
        for tried in (None, *trials):
            data = _filled(_at(template, path[1:]), path, domains, tried)
            try:
                TypeAdapter(kind).validate_python(data)
            except ValidationError as error:
                for finding in sorted(error.errors(), key=_unknown_first):
                    place = (*path, *place_of(finding))
                    if place != path and (tried is None or _name(place).startswith(tried[0])):
                        raise document.error(place, constraint_of(finding, kind)) from None
                    if finding["type"] == "unknown_kind":
                        raise document.error(
                            (*path, "kind"), constraint_of(finding, kind)
                        ) from None
    for field in ("d_model", "vocab_size"):
        values = domains[field].values if field in domains else (template[field],)
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise document.error(_path(field), f"must be a whole number above 0, got {value!r}")


def _unknown_first(finding: ErrorDetails) -> bool:
    """Sort key: of a misspelled field, report that it is unknown, not that another is missing."""
    return finding["type"] != "extra_forbidden"


def _filled(
    template: Any, path: FieldPath, domains: dict[str, Domain], tried: tuple[str, Any] | None
) -> Any:
    """The template with each choice at its first or tried value and each free width at 16."""
    name = _name(path)
    if name in domains:
        return tried[1] if tried and tried[0] == name else domains[name].values[0]
    if isinstance(template, dict):
        return {
            field: _filled(inner, (*path, field), domains, tried)
            for field, inner in template.items()
        }
    return 16 if template == FREE and path[-1] in FREE_FIELDS else template


def _check_symbols(
    document: Document, template: dict[str, Any], domains: dict[str, Domain]
) -> None:
    """Check that each symbol of the layout has a block, and that each block is used."""
    if "layout" not in template:
        return
    reachable: set[Any] = set()
    for field in ("attention", "linear", "feedforward"):
        name = f"layout.{field}"
        given = template["layout"].get(field)
        for symbol in domains[name].values if name in domains else (given,):
            if symbol is not None and symbol not in template["blocks"]:
                near = nearest(str(symbol), template["blocks"])
                raise document.error(_path(name), f"blocks does not describe {symbol!r}{near}")
            reachable.add(symbol)
    for symbol in template["blocks"]:
        if symbol not in reachable:
            raise document.error(_path(f"blocks.{symbol}"), f"the layout never uses {symbol!r}")


def _check_patterns(
    document: Document, template: dict[str, Any], domains: dict[str, Domain]
) -> None:
    if "pattern" not in template:
        return
    for pattern in domains["pattern"].values if "pattern" in domains else (template["pattern"],):
        try:
            unroll(str(pattern))
        except PatternError as error:
            raise document.error(_path("pattern"), str(error)) from None


def _check_conditions(
    document: Document, template: dict[str, Any], domains: dict[str, Domain]
) -> None:
    order = list(_draw_order(template))
    for name, domain in domains.items():
        for field, wanted in domain.when.items():
            at = (*_path(name), "when", field)
            if field not in order:
                raise document.error(at, f"when names an unknown field{nearest(field, order)}")
            if order.index(field) >= order.index(name):
                raise document.error(at, f"when must name a field that is drawn before {name}")
            known = domains.get(field)
            if isinstance(known, LogRange):
                raise document.error(
                    at, "when needs a field with listed values, this is a log_range"
                )
            possible = known.values if known else (_at(template, tuple(field.split("."))),)
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if value not in possible:
                    listed = ", ".join(str(p) for p in possible)
                    fault = f"contradiction: {field} is never {value!r}, only {listed}"
                    raise document.error(at, fault)


def _draw_order(template: dict[str, Any]) -> Iterator[str]:
    """The dotted names of all fields in the order in which they are drawn."""
    yield from (field for field in template if field not in (*_PARTS, "blocks"))
    yield from (f"layout.{field}" for field in LAYOUT_ORDER if field in template.get("layout", {}))
    for part in ("blocks", "norm", "precision"):
        yield from _leaves(template.get(part, {}), part)


def _leaves(template: Any, name: str) -> Iterator[str]:
    if isinstance(template, dict) and not any(field in template for field in DOMAINS):
        for field, value in template.items():
            yield from _leaves(value, f"{name}.{field}")
    else:
        yield name


def _at(template: Any, path: FieldPath) -> Any:
    for part in path:
        template = template[part]
    return template


def _check_names(document: Document, file: SpaceFile) -> None:
    workloads = [workload.name for workload in file.profile.workloads]
    named: list[tuple[FieldPath, str]] = [
        *((("objectives", index), label) for index, label in enumerate(file.objectives)),
        *((("constraints", label), label) for label in file.constraints),
    ]
    for path, label in named:
        ref = MetricRef.parse(label)
        name, workload = ref.name, ref.workload
        if name not in METRICS:
            raise document.error(path, f"unknown metric {name!r}{nearest(name, METRICS)}")
        if workload is not None and not METRICS[name].per_workload:
            raise document.error(path, f"{name} does not depend on a workload, got @{workload}")
        if workload is not None and workload not in workloads:
            near = nearest(workload, workloads)
            raise document.error(path, f"profile.workloads has no {workload!r}{near}")
        if path[0] == "objectives" and METRICS[name].better is None:
            raise document.error(path, f"{name} has no better direction: it cannot be optimized")
    for index, name in enumerate(file.warm_start):
        if find(name) is None:
            near = nearest(name, names())
            raise document.error(("warm_start", index), f"the atlas has no {name!r}{near}")
    if len(set(file.objectives)) < len(file.objectives):
        raise document.error(
            ("objectives",), f"objectives must differ, got {list(file.objectives)}"
        )


def _check_reachable(space: SearchSpace) -> None:
    """Check that some candidate is legal: that the budget and the constraints can be met."""
    drawn = sample(space, _PROBE_DRAWS, seed=0)
    if drawn.legal:
        return
    constraint, count = drawn.rejected.most_common(1)[0]
    constraints = space.file.architecture_constraints
    path: FieldPath = (
        ("architecture_constraints", constraints.index(constraint))
        if constraint in constraints
        else (constraint,)
    )
    if path[0] not in space.document.data:
        path = ("architecture",)
    raise space.document.error(
        path,
        f"{count} of {_PROBE_DRAWS} random draws violate this, none is legal: "
        f"{drawn.reasons[constraint]}",
    )
