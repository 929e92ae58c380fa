"""RG-LRU: Griffin's gated linear recurrence, one state per channel."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..operators import ChannelScan, NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, biases, linear, vector
from .recurrent import convolution


class RGLRU(Block):
    """Griffin's recurrent block (arXiv 2402.19427): a GeLU branch times a gated linear recurrence.

    All projections have biases, as in RecurrentGemma.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("width", "blocks")

    kind: Literal["rglru"] = "rglru"
    width: PositiveInt
    """Channels, with one state each."""
    blocks: PositiveInt
    """Diagonal blocks of the matrices of both gates; divides `width`."""
    conv: int = Field(default=4, ge=2)
    """Width of the causal convolution."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.width % self.blocks:
            raise ValueError(
                f"blocks must divide width, got width={self.width}, blocks={self.blocks}"
            )
        return self

    @property
    def letter(self) -> str:
        return "U"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        into = {"y_proj": self.width, "x_proj": self.width}
        return (
            *(linear(name, width, d_model, "mixer.in") for name, width in into.items()),
            *biases(into),
            Weight(name="conv.weight", shape=(self.width, self.conv)),
            *biases({"conv": self.width}),
            *self._gate("input_gate"),
            *self._gate("recurrent_gate"),
            vector("Lambda", self.width),
            linear("out_proj", d_model, self.width, "mixer.out"),
            *biases({"out_proj": d_model}),
        )

    def _gate(self, name: str) -> tuple[Weight, ...]:
        size, n = self.width // self.blocks, self.blocks
        return (
            linear(name, size, size, "gate", copies=n, active=n),
            vector(f"{name}.bias", size, copies=n, active=n),
        )

    def cache(self, d_model: int) -> Cache:
        return Cache(state_elements=self.width, conv_elements=(self.conv - 1) * self.width)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield convolution(point, self.width, self.conv)
        yield ChannelScan(batch=point.batch, tokens=point.tokens, channels=self.width, states=1)
        yield Rows(rows=point.rows, elements=3 * self.width)

    def operator_flops(self, d_model: int, context: int) -> float:
        """Less the read of the state that a scan counts: here the state is the output."""
        return super().operator_flops(d_model, context) - 2 * self.width

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        blocks = max(1, round(self.blocks * width_fraction))
        return {
            "width": blocks * max(1, round(self.width * width_fraction / blocks)),
            "blocks": blocks,
        }
