"""Which choices of a space no kernel supports, and on which GPU: found on meta tensors."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ..builders.body import Unbuilt
from ..builders.model import build
from ..kernels.meta_dry_run import on_absent
from ..kernels.requirements import Unsupported
from ..search_space.architecture import Architecture
from ..search_space.domain import Domain
from ..search_space.pattern import branches
from ..search_space.space import Rejected, SearchSpace
from .timing.units import TimingUnit, pieces

ARCHS = ("sm_80", "sm_90", "sm_100")
ATTEMPTS = 64  # random draws for a value, before it counts as one that no candidate has
TOKENS = 16

Taken = dict[str, Any]  # the choices of a draw
Laws = dict[str, str]  # prefill, decode, training, or of the ends both -> the law that it breaks


@dataclass(frozen=True, kw_only=True)
class Lack:
    """A choice with which a block cannot run on a GPU; `blocks.SYMBOL` where none decides it."""

    choice: str
    value: Any
    arch: str
    constraints: Laws


def lacks(space: SearchSpace, archs: Sequence[str] = ARCHS) -> list[Lack]:
    """Each value of each choice is in one of the draws that are tried. Where a block is refused,
    each choice is changed alone: those are at fault with whose change it runs.
    """
    found: dict[tuple[str, str], list[Lack]] = {}
    known: dict[tuple[str, str], Laws] = {}

    def broken(places: Sequence[TimingUnit], arch: str) -> Laws | None:
        """By the first of a block's places where it cannot run; None where it can in all."""
        for piece in places:
            key = piece.key, arch
            known[key] = known[key] if key in known else unsupported_uses(piece, arch)
            if known[key]:
                return known[key]
        return None

    def cures(taken: Taken, name: str, symbol: str, arch: str) -> bool:
        others = (_places(other).get(symbol) for other in _changed(space, taken, name))
        return any(places and broken(places, arch) is None for places in others)

    for architecture, taken in _covering(space):
        of_symbol = _places(architecture)
        for arch, symbol in product(archs, of_symbol):
            told = found.get((arch, symbol), [])
            if any(taken.get(lack.choice) == lack.value for lack in told):
                continue
            constraints = broken(of_symbol[symbol], arch)
            if constraints is None:
                continue
            faults = [name for name in taken if cures(taken, name, symbol, arch)]
            nearest = min((_distance(name, symbol) for name in faults), default=None)
            values = {n: taken[n] for n in faults if _distance(n, symbol) == nearest}
            for choice, value in (values or {f"blocks.{symbol}": None}).items():
                lack = Lack(choice=choice, value=value, arch=arch, constraints=constraints)
                found.setdefault((arch, symbol), []).append(lack)
    once = {(x.choice, str(x.value), x.arch): x for blamed in found.values() for x in blamed}
    return [once[key] for key in sorted(once, key=lambda key: key[:2])]


def _places(architecture: Architecture) -> dict[str, list[TimingUnit]]:
    """The distinct pieces of each symbol, and of the ends; of what is counted but not built, none."""
    found: dict[str, list[TimingUnit]] = {}
    if architecture.encoder:
        return found
    for piece in pieces(architecture):
        found.setdefault(piece.symbol, []).append(piece)
    return found


def _distance(name: str, symbol: str) -> int:
    """A block's own choices come first, then its formats: where it stands may avoid both."""
    if any(name.startswith(f"blocks.{branch}.") for branch in branches(symbol)):
        return 0
    return 1 if name.startswith("precision.") and "keep_" not in name else 2


def unsupported_uses(piece: TimingUnit, arch: str) -> Laws:
    """Of the uses of a piece that cannot run on a GPU of `arch`."""
    constraints: Laws = {}
    with on_absent(arch):
        try:
            model = build(piece.architecture, device="meta", dtype=torch.bfloat16)
        except Unbuilt as rejection:
            return {"build": str(rejection)}
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
        uses: dict[str, Callable[[], object]] = {
            "prefill": lambda: model.prefill(tokens),
            "decode": lambda: model.step(tokens[:, 0], model.fill_random(1, TOKENS)),
            "training": lambda: model.loss(tokens).backward(),
        }
        if piece.part == "ends":
            uses = {"ends": lambda: model.logits(model.norm(model.embed(tokens))).sum().backward()}
        for use, run in uses.items():
            try:
                run()
            except Unsupported as rejection:
                constraints[use] = str(rejection)
    return constraints


def _covering(space: SearchSpace) -> Iterator[tuple[Architecture, Taken]]:
    """Legal draws in which each value of each choice occurs, if random draws ever have it."""
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


def _changed(space: SearchSpace, taken: Taken, name: str) -> Iterator[Architecture]:
    """The legal candidates that differ in one choice, and in those which it brings along."""
    for value in space.domains[name].values:
        if value != taken[name]:
            drawn = _draw(space, taken | {name: value}, lambda domain: domain.values[0])
            if drawn is not None:
                yield drawn[0]


def _draw(
    space: SearchSpace, fixed: Taken, otherwise: Callable[[Domain], Any]
) -> tuple[Architecture, Taken] | None:
    taken: Taken = {}

    def choose(name: str, domain: Domain) -> Any:
        taken[name] = fixed[name] if name in fixed else otherwise(domain)
        return taken[name]

    try:
        return space.draw(choose), taken
    except Rejected:
        return None
