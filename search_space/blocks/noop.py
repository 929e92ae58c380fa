"""No-op: a sub-block that does nothing."""

from collections.abc import Iterator
from typing import Literal

from ..operators import NumberFormat, Operator, Point
from .block import Block, Weight


class NoOp(Block):
    """No-op: a sub-block whose mixer or feed-forward was removed."""

    own_norms = True

    kind: Literal["noop"] = "noop"

    @property
    def letter(self) -> str:
        return "."

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return ()

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield from ()
