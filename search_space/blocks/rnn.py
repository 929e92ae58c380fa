"""Recurrent networks with nonlinear states: GRU and LSTM."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveInt

from ..operators import NumberFormat, Operator, Point, Rows, SequentialGemm
from .block import Block, Cache, Weight, biases, linear, make_divisible
from .heads import HeadLayout, head_rows

GATES = {"gru": 3, "lstm": 4}


class RNN(Block):
    """GRU or LSTM layer, as in torch, between projections from and to the model's width."""

    kind: Literal["rnn"] = "rnn"
    cell: Literal["gru", "lstm"] = "gru"
    """Cell."""
    width: PositiveInt
    """Units."""

    @property
    def letter(self) -> str:
        return "N"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        gates = GATES[self.cell] * self.width
        return (
            linear("input", gates, d_model, "mixer.in"),
            linear("hidden", gates, self.width, "mixer.in"),
            *biases({"input": gates, "hidden": gates}),
            linear("out_proj", d_model, self.width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        gates = {f"gate{index}": (1, self.width) for index in range(GATES[self.cell])}
        return {"input": head_rows(**gates), "hidden": head_rows(**gates)}

    def cache(self, d_model: int) -> Cache:
        return Cache(conv_elements=self.width * (2 if self.cell == "lstm" else 1))

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        gates = GATES[self.cell] * self.width
        yield SequentialGemm(steps=point.tokens, n=gates, k=self.width)  # one step after the other
        yield Rows(rows=point.rows, elements=2 * gates)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        return {"width": make_divisible(self.width * width_fraction)}
