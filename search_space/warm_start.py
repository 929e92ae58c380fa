"""Warm starts: the candidates of a space that are nearest to published architectures."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from .architecture import ATTENTION_KINDS, Architecture
from .blocks.block import Block
from .domain import Domain, LogRange, draw_at_random
from .layout import Layout, Placement
from .pattern import branches, is_feed_forward, units, unroll
from .published import entry
from .space import Rejected, SearchSpace

TRIES = 64
RANDOM_FRACTION = 0.2  # of the choices, if the nearest candidate is not legal


@dataclass(frozen=True, kw_only=True)
class Start:
    """The candidate near a published architecture; a rejection if none near it is legal."""

    name: str
    parameters: dict[str, Any]
    architecture: Architecture | None
    rejection: str | None = None


def starts(space: SearchSpace) -> tuple[Start, ...]:
    """The warm starts that the space names."""
    return tuple(start_near(space, name) for name in space.file.warm_start)


def start_near(space: SearchSpace, name: str) -> Start:
    """The candidate whose choices have the values nearest to a published architecture's.

    Numbers are compared by their ratio, symbols by their letter, placements by the depths of
    attention; a choice without a counterpart takes its first value. If constraints or budget reject
    that candidate, random choices are changed until one is legal.
    """
    published, source, first = entry(name).architecture, random.Random(0), None
    for attempt in range(TRIES):
        near = _Nearest(published, source=source if attempt else None, layout=attempt > TRIES / 2)
        try:
            architecture = space.draw(near.choose)
        except Rejected as rejected:
            first = first or Start(
                name=name, parameters=near.chosen, architecture=None, rejection=str(rejected)
            )
            continue
        return Start(name=name, parameters=near.chosen, architecture=architecture)
    assert first is not None, "every attempt was rejected"
    return first


class _Nearest:
    """The nearest choices; with `source` some at random, those of the layout only with `layout`."""

    def __init__(
        self, architecture: Architecture, *, source: random.Random | None, layout: bool
    ) -> None:
        self.architecture, self.source, self.layout = architecture, source, layout
        layers = units(architecture.symbols)
        self.mixers = [layer[0] for layer in layers if not is_feed_forward(layer[0])]
        self.feed_forwards = [layer[-1] for layer in layers if is_feed_forward(layer[-1])]
        self.chosen: dict[str, Any] = {}

    def choose(self, name: str, domain: Domain) -> Any:
        wanted = self._wanted(name)
        value = domain.values[0] if wanted is None else self._closest(name, domain, wanted)
        fixed = name.startswith(("layout.", "pattern")) and not self.layout
        if self.source and not fixed and self.source.random() < RANDOM_FRACTION:
            value = draw_at_random(domain, self.source)
        self.chosen[name] = value
        return value

    def _wanted(self, name: str) -> Any:
        """The architecture's value of that field; None if it has none."""
        match name.split("."):
            case ["layout", "layers"]:
                return self.architecture.num_layers
            case ["layout", "ratio"]:
                return len(self._attention_depths()) / max(1, len(self.mixers))
            case ["layout", "attention"]:
                return self._most_frequent(s for s in self.mixers if self._attends(s))
            case ["layout", "linear"]:
                return self._most_frequent(s for s in self.mixers if not self._attends(s))
            case ["layout", "feedforward"]:
                return self._most_frequent(self.feed_forwards)
            case ["layout", "placement"]:
                return self._attention_depths() or None
            case ["pattern"]:
                return self.architecture.pattern
            case ["blocks", symbol, *path]:
                block = self._block_like(symbol)
                return None if block is None else _at(block, path)
            case path:
                return _at(self.architecture, path)

    def _closest(self, name: str, domain: Domain, wanted: Any) -> Any:
        values = domain.values
        match name:
            case "layout.attention" | "layout.linear" | "layout.feedforward":
                return next((v for v in values if v and v[0] == wanted), values[0])
            case "layout.placement":
                return min(values, key=lambda v: _distance(self._depths(v), wanted))
            case "pattern":
                return min(values, key=lambda v: _difference(unroll(v), unroll(wanted)))
        if isinstance(wanted, int | float) and not isinstance(wanted, bool):
            return _nearest_number(domain, wanted)
        if isinstance(wanted, tuple):
            return next((v for v in values if tuple(v or ()) == wanted), values[0])
        return wanted if wanted in values else values[0]

    def _attends(self, group: str) -> bool:
        blocks = self.architecture.blocks
        return any(blocks[symbol].kind in ATTENTION_KINDS for symbol in branches(group))

    def _attention_depths(self) -> list[float]:
        """The relative depths of attention among the mixers, from 0 to 1."""
        count = len(self.mixers)
        return [(i + 0.5) / count for i, s in enumerate(self.mixers) if self._attends(s)]

    def _depths(self, placement: Placement) -> list[float]:
        """The relative depths of attention by a placement in the layers chosen so far."""
        layers = int(self.chosen.get("layout.layers", self.architecture.num_layers))
        ratio = self.chosen.get("layout.ratio", len(self._attention_depths()) / len(self.mixers))
        layout = Layout(layers=layers, ratio=ratio, placement=placement, attention="*", linear="M")
        return [(i + 0.5) / layers for i, s in enumerate(unroll(layout.pattern())) if s == "*"]

    def _most_frequent(self, groups: Any) -> str | None:
        """The most frequent letter."""
        counted = Counter(symbol[0] for group in groups for symbol in branches(group))
        return counted.most_common(1)[0][0] if counted else None

    def _block_like(self, symbol: str) -> Block | None:
        """The block of the same symbol, else the most frequent one of the same letter."""
        blocks = self.architecture.blocks
        uses = Counter(body.symbol for body in self.architecture.bodies)
        alike = [s for s in blocks if s[0] == symbol[0]]
        found = symbol if symbol in blocks else max(alike, key=lambda s: uses[s], default=None)
        return None if found is None else blocks[found]


def _at(record: Any, path: Sequence[str]) -> Any:
    for field in path:
        if not isinstance(record, BaseModel) or field not in type(record).model_fields:
            return None
        record = getattr(record, field)
    return record


def _nearest_number(domain: Domain, wanted: float) -> Any:
    if isinstance(domain, LogRange):
        low, high = domain.log_range
        value = min(max(wanted, low), high)
        return round(value) if domain.whole else value
    numbers = [v for v in domain.values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not numbers:
        return domain.values[0]
    if wanted > 0 and min(numbers) > 0:
        return min(numbers, key=lambda v: abs(math.log(v / wanted)))
    return min(numbers, key=lambda v: abs(v - wanted))


def _distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The mean distance from each depth to the nearest one of the other list, both ways."""
    if not ours or not theirs:
        return math.inf
    there = sum(min(abs(a - b) for b in theirs) for a in ours) / len(ours)
    back = sum(min(abs(a - b) for a in ours) for b in theirs) / len(theirs)
    return there + back


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The L1 distance between the frequencies of the letters."""
    a, b = (Counter(symbol[0] for symbol in symbols) for symbols in (ours, theirs))
    return sum(abs(a[s] / len(ours) - b[s] / len(theirs)) for s in {*a, *b})
