"""Gated short convolution: a mixer over a few tokens."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, linear
from .recurrent import convolution


class ShortConv(Block):
    """Gated short convolution of LFM2: a causal depthwise convolution between two input gates."""

    kind: Literal["shortconv"] = "shortconv"
    conv: int = Field(default=3, ge=2)
    """Width of the convolution."""

    @property
    def letter(self) -> str:
        return "Y"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            linear("in_proj", 3 * d_model, d_model, "mixer.in"),  # B, C, x
            Weight(name="conv.weight", shape=(d_model, self.conv)),
            linear("out_proj", d_model, d_model, "mixer.out"),
        )

    def cache(self, d_model: int) -> Cache:
        return Cache(conv_elements=(self.conv - 1) * d_model)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield Rows(rows=point.rows, elements=6 * d_model)  # the two gates
        yield convolution(point, d_model, self.conv)

    def operator_flops(self, d_model: int, context: int) -> float:
        """With one product per channel for each of the two gates."""
        return super().operator_flops(d_model, context) + 2 * d_model
