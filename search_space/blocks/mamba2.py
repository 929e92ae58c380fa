"""Mamba-2: a state-space mixer with a scalar decay per head."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, biases, linear, make_divisible, vector
from .heads import HeadLayout, head_columns, head_rows
from .recurrent import convolution, recurrence


class Mamba2(Block):
    """Mamba-2, the SSD layer of arXiv 2405.21060: states of head_dim x d_state."""

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)
    tp_replicable_dims: ClassVar[tuple[str, ...]] = ("groups",)

    kind: Literal["mamba2"] = "mamba2"
    heads: PositiveInt
    """Heads."""
    head_dim: PositiveInt
    """Dimension of a head."""
    d_state: PositiveInt
    """State size per head dimension."""
    groups: PositiveInt = 1
    """Groups of heads that share B and C; divides `heads`."""
    conv: int = Field(default=4, ge=2)
    """Width of the causal convolution over x, B and C."""
    conv_bias: bool = True
    """Bias of the convolution."""
    gated_norm: bool = True
    """Gated RMSNorm over each group before the output projection; false: the gate alone."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.heads % self.groups:
            raise ValueError(
                f"groups must divide heads, got heads={self.heads}, groups={self.groups}"
            )
        return self

    @property
    def letter(self) -> str:
        return "M"

    @property
    def d_inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution."""
        return self.d_inner + 2 * self.groups * self.d_state

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        projected = self.d_inner + self.conv_width + self.heads  # z; x, B, C; dt
        return (
            linear("in_proj", projected, d_model, "mixer.in"),
            Weight(name="conv.weight", shape=(self.conv_width, self.conv)),
            *(biases({"conv": self.conv_width}) if self.conv_bias else ()),
            vector("A_log", self.heads),
            vector("D", self.heads),
            vector("dt_bias", self.heads),
            *((vector("norm.weight", self.d_inner),) if self.gated_norm else ()),
            linear("out_proj", d_model, self.d_inner, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        values, shared = (self.heads, self.head_dim), (self.groups, self.d_state)
        return {
            "in_proj": head_rows(z=values, v=values, k=shared, q=shared, dt=(self.heads, 1)),
            "conv": head_rows(conv_v=values, conv_k=shared, conv_q=shared),
            "norm": head_rows(norm=values),
            "out_proj": head_columns(o=values),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(
            state_elements=self.heads * self.head_dim * self.d_state,
            conv_elements=(self.conv - 1) * self.conv_width,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield convolution(point, self.conv_width, self.conv)
        yield recurrence(
            point, k_heads=self.groups, heads=self.heads, k_dim=self.d_state, v_dim=self.head_dim
        )
        yield Rows(rows=point.rows, elements=3 * self.d_inner)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        heads = max(1, round(self.d_inner * width_fraction / head_dim))
        return {
            "heads": heads,
            "head_dim": head_dim,
            "d_state": make_divisible(self.d_state * width_fraction),
            "groups": math.gcd(self.groups, heads),
        }
