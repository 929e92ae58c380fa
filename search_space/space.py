"""Search spaces: architectures in which some values are choices.

    architecture:
      d_model: 512
      layout: {layers: 12, ratio: {choices: [0.25, 0.5, 1]}, attention: {choices: ["*", L]}, ...}
      blocks:
        L: {kind: mla, kv_lora_rank: {range: [64, 256, 64]}, ...}
        "-": {kind: ffn, width: free}           # solved by the budget
      precision: {fp8: {choices: [[], [ffn.up, ffn.down]]}}

A choice in a block exists only while the layout uses that block; `when` is any other condition.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from .accounting import located_weights
from .architecture import Architecture, Precision
from .budget import Budget, Unreachable, solve
from .constraints import ArchitectureConstraint, violation
from .document import Document, FieldPath, Record
from .domain import Domain, draw_at_random
from .layout import Layout
from .pattern import branches, unroll
from .plan import Plan

FREE = "free"  # a width that the budget solves
FREE_FIELDS = ("width", "d_expert")  # of blocks
FP8_DIVISOR = 16
LAYOUT_ORDER = ("layers", "ratio", "attention", "linear", "placement", "feedforward")
Choose = Callable[[str, Domain], Any]
M = TypeVar("M", bound=BaseModel)


class Bound(Record):
    """A bound on a metric: either an upper or a lower one."""

    max: float | None = None
    """Largest value that satisfies the constraint."""
    min: float | None = None
    """Smallest value that satisfies the constraint."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if (self.max is None) == (self.min is None):
            raise ValueError(
                f"a constraint has either max or min, got max={self.max}, min={self.min}"
            )
        return self

    def violation(self, value: float) -> float:
        """How far `value` is beyond the bound; at most 0 if the bound is satisfied."""
        return value - self.max if self.max is not None else (self.min or 0.0) - value


class SearchSettings(Record):
    """How a search explores the space."""

    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    """What proposes candidates: multivariate TPE, uniform draws, or NSGA-II."""


class SpaceFile(Record):
    """A space file: an architecture with choices, objectives, and how candidates are evaluated."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
    """Name of the space; studies are named after it."""
    description: str = ""
    """Description in one line."""
    architecture: dict[str, Any]
    """Architecture whose values may be choices, with a `layout` or a `pattern`."""
    architecture_constraints: tuple[str, ...] = ()
    """Comparisons that every candidate must satisfy, such as `moe.top_k * 4 <= moe.n_experts`; a
    name is d_model, vocab_size, num_layers or kind.field."""
    budget: Budget | None = None
    """Quantity that all candidates have the same amount of, solved by the free widths."""
    objectives: tuple[str, ...] = Field(min_length=1, max_length=4)
    """Metrics to optimize, at the first workload or as `name@workload`."""
    constraints: dict[str, Bound] = {}
    """Bounds on metrics; a candidate that violates one is infeasible and not part of the front."""
    warm_start: tuple[str, ...] = ()
    """Published architectures; the first trials are the candidates nearest to them."""
    profile: Plan = Plan()
    """How candidates are evaluated."""
    search: SearchSettings = SearchSettings()
    """How candidates are proposed."""


class Rejected(ValueError):
    """The drawn values make no legal candidate; `constraint` is the violated one in short."""

    def __init__(self, constraint: str, reason: str) -> None:
        super().__init__(reason)
        self.constraint = constraint


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A checked space: its file, the domains of its choices by dotted name, its constraints."""

    document: Document
    file: SpaceFile
    domains: dict[str, Domain]
    architecture_constraints: tuple[ArchitectureConstraint, ...]

    @property
    def name(self) -> str:
        """The name of the space."""
        return self.file.name

    @property
    def plan(self) -> Plan:
        """How candidates are evaluated."""
        return self.file.profile

    def for_target(self, target: str | None) -> Self:
        """The same space with another target; None keeps it."""
        if target is None:
            return self
        plan = self.plan.model_copy(update={"target": target})
        return replace(self, file=self.file.model_copy(update={"profile": plan}))

    def draw(self, choose: Choose) -> Architecture:
        """One candidate; `choose(name, domain)` is called for each choice that exists, in order.

        Raises Rejected if the values violate a constraint, the schema or the budget.
        """
        fields = _Walk(self.file.architecture, self.domains, choose).architecture()
        architecture = _without_unused_roles(self._at_budget(fields))
        for constraint in self.architecture_constraints:
            if reason := violation(constraint, architecture):
                raise Rejected(constraint.text, reason)
        if reason := invalid_fp8_shape(architecture):
            raise Rejected("FP8 shapes", reason)
        return architecture

    def _at_budget(self, fields: dict[str, Any]) -> Architecture:
        if self.file.budget is None:
            return _built(Architecture, fields)
        try:
            return solve(
                self.file.budget, lambda width: _built(Architecture, _at_width(fields, width))
            )
        except Unreachable as error:
            raise Rejected("budget", str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Random draws of a space: legal candidates, and rejections by the violated constraint."""

    legal: tuple[Architecture, ...]
    rejected: Counter[str]
    reasons: dict[str, str]


def sample(space: SearchSpace, count: int, seed: int) -> Sample:
    """Draw `count` times at random, to see what is legal and which constraints reject the rest."""
    source = random.Random(seed)
    legal, rejected, reasons = [], Counter[str](), {}
    for _ in range(count):
        try:
            legal.append(space.draw(lambda _, domain: draw_at_random(domain, source)))
        except Rejected as error:
            rejected[error.constraint] += 1
            reasons.setdefault(error.constraint, str(error))
    return Sample(legal=tuple(legal), rejected=rejected, reasons=reasons)


class _Walk:
    """One pass over the template that draws each choice that exists and returns plain data."""

    def __init__(
        self, template: dict[str, Any], domains: dict[str, Domain], choose: Choose
    ) -> None:
        self.template, self.domains, self.choose = template, domains, choose
        self.taken: dict[str, Any] = {}

    def architecture(self) -> dict[str, Any]:
        fields = {
            name: self.value((name,))
            for name in self.template
            if name not in ("layout", "blocks", "precision", "norm")
        }
        fields = {name: value for name, value in fields.items() if value is not _ABSENT}
        if "layout" in self.template:
            fields["pattern"] = self.layout().pattern()
        stacks = [fields["pattern"]]
        stacks += [fields[part]["pattern"] for part in ("mtp", "encoder") if fields.get(part)]
        used = {symbol for stack in stacks for group in unroll(stack) for symbol in branches(group)}
        fields["blocks"] = {
            symbol: self.record(("blocks", symbol))
            for symbol in self.template.get("blocks", {})
            if symbol in used
        }
        for name in ("norm", "precision"):
            if name in self.template:
                fields[name] = self.record((name,))
        return fields

    def layout(self) -> Layout:
        """The layout's choices; those that another one makes irrelevant are not drawn."""
        given: dict[str, Any] = {}
        for name in LAYOUT_ORDER:
            if name not in ("layers", "ratio"):
                count, layers = round(given["ratio"] * given["layers"]), given["layers"]
                irrelevant = {"attention": count == 0, "linear": count == layers}
                irrelevant["placement"] = count in (0, layers)
                if irrelevant.get(name, False):
                    continue
            given[name] = self.value(("layout", name))
        return _built(
            Layout, {name: value for name, value in given.items() if value is not _ABSENT}
        )

    def record(self, path: FieldPath) -> dict[str, Any]:
        fields = {name: self.value((*path, name)) for name in _at(self.template, path)}
        return {name: value for name, value in fields.items() if value is not _ABSENT}

    def value(self, path: FieldPath) -> Any:
        raw = _at(self.template, path)
        name = ".".join(str(part) for part in path)
        domain = self.domains.get(name)
        if domain is None:
            if isinstance(raw, dict):
                return self.record(path)
            self.taken[name] = raw
            return raw
        if not all(self.holds(field, wanted) for field, wanted in domain.when.items()):
            return _ABSENT
        self.taken[name] = self.choose(name, domain)
        return self.taken[name]

    def holds(self, field: str, wanted: Any) -> bool:
        return self.taken.get(field, _ABSENT) in (wanted if isinstance(wanted, list) else [wanted])


_ABSENT = object()


def _at(template: Any, path: FieldPath) -> Any:
    for part in path:
        if not isinstance(template, dict) or part not in template:
            return _ABSENT
        template = template[part]
    return template


def _built(record: type[M], fields: dict[str, Any]) -> M:
    try:
        return record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if not str(part).endswith("!"))
        reason = first["msg"].removeprefix("Value error, ")
        raise Rejected(f"{field or record.__name__.lower()}", reason) from None


def _at_width(fields: dict[str, Any], width: int) -> dict[str, Any]:
    """`fields` with every free width set: `width`, divided among the experts per token."""
    blocks = {}
    for symbol, block in fields["blocks"].items():
        filled = dict(block)
        if filled.get("width") == FREE:
            filled["width"] = width
        if filled.get("d_expert") == FREE:
            used = filled["top_k"] + filled.get("n_shared", 0)
            filled["d_expert"] = max(FP8_DIVISOR, FP8_DIVISOR * round(width / used / FP8_DIVISOR))
        blocks[symbol] = filled
    return {**fields, "blocks": blocks}


def _without_unused_roles(architecture: Architecture) -> Architecture:
    """Drop roles of the plan that no weight has, so that equal models have one key."""
    present: set[str | None] = {
        weight.role for block in architecture.blocks.values() for weight in block.weights(1)
    }
    if any(block.cache(1).kv_elements for block in architecture.blocks.values()):
        present.add("kv_cache")
    if not architecture.tied_embeddings:
        present.add("lm_head")
    plan = architecture.precision
    kept = {
        name: tuple(role for role in getattr(plan, name) if role in present)
        for name in ("fp8", "fp4", "int8")
    }
    fewer = Precision.model_validate(plan.model_dump() | kept)
    if fewer == plan:
        return architecture
    return architecture.changed(precision=fewer)


def invalid_fp8_shape(architecture: Architecture) -> str | None:
    """The first FP8 matrix whose dimensions are not divisible by 16, as tensor cores need."""
    for located in located_weights(architecture):
        weight = located.weight
        if located.format == "fp8" and any(size % FP8_DIVISOR for size in weight.shape):
            return (
                f"FP8 matrices need dimensions divisible by {FP8_DIVISOR}, got {weight.name} "
                f"{list(weight.shape)} in {weight.role}"
            )
    return None
