"""The choices of a search space that no kernel supports on a GPU, found on meta tensors."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ..builders.body import Unbuilt
from ..builders.model import build
from ..kernels.configs import ARCHS
from ..kernels.meta_dry_run import dry_run_on
from ..kernels.requirements import Unsupported
from ..search_space.architecture import Architecture
from ..search_space.domain import Domain
from ..search_space.pattern import branches
from ..search_space.space import Rejected, SearchSpace
from .cluster import cluster
from .lowering import EMBEDDING_AND_HEAD
from .timing.units import TimingUnit, timing_units

ATTEMPTS = 64  # random draws for a value, before no candidate is taken to have it
TOKENS = 16

Choices = dict[str, Any]  # the values of a draw by choice
Violations = dict[str, str]  # prefill, decode, training, build or embedding_and_head -> constraint


@dataclass(frozen=True, kw_only=True)
class UnsupportedChoice:
    """A value of a choice with which a block cannot run on a GPU architecture.

    `choice` is `blocks.SYMBOL`, and `value` None, where no choice decides it. `constraints` has the
    violated constraint of a kernel by use: prefill, decode, training.
    """

    choice: str
    value: Any
    arch: str
    constraints: Violations


def kernel_archs(targets: Iterable[str]) -> tuple[str, ...]:
    """The GPU architectures ("sm_90") of targets that have kernels, in the order of ARCHS.

    Empty where no target has: AMD, a host. Raises InputError for an unknown target.
    """
    wanted = {cluster(target).device.sm for target in targets}
    return tuple(arch for arch in ARCHS if arch in wanted)


def unsupported_choices(space: SearchSpace, archs: Sequence[str]) -> list[UnsupportedChoice]:
    """The choices of a space with which a block cannot run on one of the GPU architectures.

    Each value of each choice is in one of the draws that are tried. Where a block cannot run, each
    choice of the draw is changed alone: those with whose change it runs are at fault.
    """
    found: dict[tuple[str, str], list[UnsupportedChoice]] = {}
    known: dict[tuple[str, str], Violations] = {}

    def violated(units: Sequence[TimingUnit], arch: str) -> Violations | None:
        """The violated constraints of the first unit that cannot run; None where all can."""
        for unit in units:
            key = unit.key, arch
            known[key] = known[key] if key in known else unsupported_uses(unit, arch)
            if known[key]:
                return known[key]
        return None

    def runs_when_changed(taken: Choices, name: str, group: str, arch: str) -> bool:
        others = (_units_by_group(other).get(group) for other in _changed(space, taken, name))
        return any(units and violated(units, arch) is None for units in others)

    for architecture, taken in _covering(space):
        units_by_group = _units_by_group(architecture)
        for arch, group in product(archs, units_by_group):
            before = found.get((arch, group), [])
            if any(taken.get(choice.choice) == choice.value for choice in before):
                continue
            constraints = violated(units_by_group[group], arch)
            if constraints is None:
                continue
            faults = [name for name in taken if runs_when_changed(taken, name, group, arch)]
            nearest = min((_distance(name, group) for name in faults), default=None)
            values = {n: taken[n] for n in faults if _distance(n, group) == nearest}
            for name, value in (values or {f"blocks.{group}": None}).items():
                choice = UnsupportedChoice(
                    choice=name, value=value, arch=arch, constraints=constraints
                )
                found.setdefault((arch, group), []).append(choice)
    once = {(x.choice, str(x.value), x.arch): x for choices in found.values() for x in choices}
    return [once[key] for key in sorted(once, key=lambda key: key[:2])]


def _units_by_group(architecture: Architecture) -> dict[str, list[TimingUnit]]:
    """The timing units of each layer group; none of an encoder-decoder, which is not built."""
    found: dict[str, list[TimingUnit]] = {}
    if architecture.encoder:
        return found
    for unit in timing_units(architecture):
        found.setdefault(unit.group, []).append(unit)
    return found


def _distance(name: str, group: str) -> int:
    """0 for a choice of the block itself, 1 for a number format, 2 for any other choice."""
    if any(name.startswith(f"blocks.{branch}.") for branch in branches(group)):
        return 0
    return 1 if name.startswith("precision.") and "keep_" not in name else 2


def unsupported_uses(unit: TimingUnit, arch: str) -> Violations:
    """The violated constraints of the uses in which a unit cannot run on a GPU of `arch`."""
    violations: Violations = {}
    with dry_run_on(arch):
        try:
            model = build(unit.architecture, device="meta", dtype=torch.bfloat16)
        except Unbuilt as error:
            return {"build": str(error)}
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
        uses: dict[str, Callable[[], object]] = {
            "prefill": lambda: model.prefill(tokens),
            "decode": lambda: model.step(tokens[:, 0], model.fill_random(1, TOKENS)),
            "training": lambda: model.loss(tokens).backward(),
        }
        if unit.kind == EMBEDDING_AND_HEAD:
            uses = {
                EMBEDDING_AND_HEAD: lambda: (
                    model.logits(model.norm(model.embed(tokens))).sum().backward()
                )
            }
        for use, run in uses.items():
            try:
                run()
            except Unsupported as error:
                violations[use] = str(error)
    return violations


def _covering(space: SearchSpace) -> Iterator[tuple[Architecture, Choices]]:
    """Valid draws in which each value of each choice occurs, where random draws have it."""
    source = random.Random(0)
    seen: set[tuple[str, str]] = set()
    for wanted, domain in space.domains.items():
        for value in domain.values:
            for _ in range(ATTEMPTS):
                if (wanted, str(value)) in seen:
                    break
                drawn = _draw(space, {wanted: value}, lambda domain: source.choice(domain.values))
                if drawn is not None and wanted in drawn[1]:
                    seen |= {(name, str(taken)) for name, taken in drawn[1].items()}
                    yield drawn


def _changed(space: SearchSpace, taken: Choices, name: str) -> Iterator[Architecture]:
    """The valid candidates that differ in one choice and in the choices that depend on it."""
    for value in space.domains[name].values:
        if value != taken[name]:
            drawn = _draw(space, taken | {name: value}, lambda domain: domain.values[0])
            if drawn is not None:
                yield drawn[0]


def _draw(
    space: SearchSpace, fixed: Choices, otherwise: Callable[[Domain], Any]
) -> tuple[Architecture, Choices] | None:
    taken: Choices = {}

    def choose(name: str, domain: Domain) -> Any:
        taken[name] = fixed[name] if name in fixed else otherwise(domain)
        return taken[name]

    try:
        return space.draw(choose), taken
    except Rejected:
        return None
