"""Domains of choices: listed values, ranges with a step, logarithmic ranges."""

import json
import random
from collections import Counter
from typing import Any, Self

from pydantic import Field, model_validator

from .document import Record

MAX_VALUES = 4096  # of a range, each of which is validated


class Choices(Record):
    """A field of a space that takes one of the listed values."""

    choices: tuple[Any, ...] = Field(min_length=1)
    """Values, all different; a value may be a list."""
    when: dict[str, Any] = {}
    """Condition: by dotted name of an earlier field, the value or list of values it must have."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if twice := [label for label, count in Counter(self.labels).items() if count > 1]:
            raise ValueError(f"choices must differ, got {twice[0]} twice")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """The values."""
        return self.choices

    @property
    def labels(self) -> tuple[str, ...]:
        """The values as text in the given order, for samplers and the store."""
        return tuple(json.dumps(value) for value in self.choices)


class Range(Record):
    """A field of a space that takes evenly spaced numbers; whole bounds give whole numbers."""

    range: tuple[float, float, float]
    """[low, high, step], both ends included."""
    when: dict[str, Any] = {}
    """Condition: by dotted name of an earlier field, the value or list of values it must have."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        low, high, step = self.range
        if not (low < high and step > 0):
            raise ValueError(
                "range must be [low, high, step] with low < high and step > 0, "
                f"got {[*map(_short, self.range)]}"
            )
        if abs((high - low) / step - round((high - low) / step)) > 1e-9:
            raise ValueError(f"step must divide high - low, got {[*map(_short, self.range)]}")
        if (count := round((high - low) / step) + 1) > MAX_VALUES:
            raise ValueError(f"a range has at most {MAX_VALUES} values, got {count}")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """All values."""
        low, high, step = self.range
        points = [low + index * step for index in range(round((high - low) / step) + 1)]
        return tuple(int(p) if self.whole else p for p in points)

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return all(bound.is_integer() for bound in self.range)


class LogRange(Record):
    """A field of a space that is uniform in the logarithm; whole bounds give whole numbers."""

    log_range: tuple[float, float]
    """[low, high], both ends included."""
    when: dict[str, Any] = {}
    """Condition: by dotted name of an earlier field, the value or list of values it must have."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        low, high = self.log_range
        if not 0 < low < high:
            raise ValueError(
                "log_range must be [low, high] with 0 < low < high, "
                f"got {[*map(_short, self.log_range)]}"
            )
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """The two ends, for checks."""
        return tuple(int(bound) if self.whole else bound for bound in self.log_range)

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return all(bound.is_integer() for bound in self.log_range)


def _short(bound: float) -> float:
    return int(bound) if bound.is_integer() else bound


Domain = Choices | Range | LogRange
DOMAINS: dict[str, type[Domain]] = {"choices": Choices, "range": Range, "log_range": LogRange}


def draw_at_random(domain: Domain, source: random.Random) -> Any:
    """A uniformly drawn value; of a log range uniform in the logarithm."""
    if isinstance(domain, LogRange):
        low, high = domain.log_range
        value = low * (high / low) ** source.random()
        return round(value) if domain.whole else value
    return source.choice(domain.values)
