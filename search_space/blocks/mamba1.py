"""Mamba-1: a state-space mixer with a decay per channel and state."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ..operators import ChannelScan, NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, biases, linear, make_divisible, vector
from .heads import HeadLayout, head_rows
from .recurrent import convolution


class Mamba1(Block):
    """Mamba-1, the selective scan of arXiv 2312.00752."""

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("d_inner",)

    kind: Literal["mamba1"] = "mamba1"
    d_inner: PositiveInt
    """Channels."""
    d_state: PositiveInt
    """States per channel."""
    dt_rank: PositiveInt
    """Rank of the projection to the step size."""
    conv: int = Field(default=4, ge=2)
    """Width of the causal convolution."""
    conv_bias: bool = True
    """Bias of the convolution."""
    inner_norms: bool = False
    """RMSNorms on step size, B and C, as in Jamba (arXiv 2403.19887)."""

    @property
    def letter(self) -> str:
        return "m"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        norms = {"dt_norm": self.dt_rank, "b_norm": self.d_state, "c_norm": self.d_state}
        return (
            linear("in_proj", 2 * self.d_inner, d_model, "mixer.in"),  # x; z
            Weight(name="conv.weight", shape=(self.d_inner, self.conv)),
            *(biases({"conv": self.d_inner}) if self.conv_bias else ()),
            linear("x_proj", self.dt_rank + 2 * self.d_state, self.d_inner, "gate"),
            linear("dt_proj", self.d_inner, self.dt_rank, "gate"),
            vector("dt_bias", self.d_inner),
            Weight(name="A_log", shape=(self.d_inner, self.d_state)),
            vector("D", self.d_inner),
            *(vector(f"{name}.weight", size) for name, size in norms.items() if self.inner_norms),
            linear("out_proj", d_model, self.d_inner, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        channels, state = (1, self.d_inner), (1, self.d_state)
        return {
            "in_proj": head_rows(x=channels, gate=channels),
            "x_proj": head_rows(rate=(1, self.dt_rank), B=state, C=state),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(
            state_elements=self.d_inner * self.d_state,
            conv_elements=(self.conv - 1) * self.d_inner,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield convolution(point, self.d_inner, self.conv)
        yield ChannelScan(
            batch=point.batch, tokens=point.tokens, channels=self.d_inner, states=self.d_state
        )
        yield Rows(rows=point.rows, elements=3 * self.d_inner)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        return {
            "d_inner": make_divisible(self.d_inner * width_fraction),
            "dt_rank": max(4, round(self.dt_rank * width_fraction)),
        }
