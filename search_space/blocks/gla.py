"""Gated linear attention: a linear mixer with a learned decay per key channel."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, biases, linear, make_divisible, vector
from .heads import HeadLayout, head_rows, linear_mixer_heads
from .recurrent import convolution, recurrence


class GLA(Block):
    """Gated linear attention (arXiv 2312.06635): states of k_head_dim x v_head_dim.

    A gated RMSNorm of each head precedes the output projection.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["gla"] = "gla"
    heads: PositiveInt
    """Heads."""
    k_head_dim: PositiveInt
    """Dimension of query and key heads."""
    v_head_dim: PositiveInt
    """Dimension of value heads."""
    gate_rank: PositiveInt = 16
    """Rank of the projection to the decay."""
    conv: NonNegativeInt = 4
    """Width of the causal convolution over q, k and v; 0: none."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.conv == 1:
            raise ValueError("conv must be 0 or at least 2, got 1")
        return self

    @property
    def letter(self) -> str:
        return "T"

    @property
    def k_width(self) -> int:
        """Width of all key heads."""
        return self.heads * self.k_head_dim

    @property
    def v_width(self) -> int:
        """Width of all value heads."""
        return self.heads * self.v_head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution."""
        return 2 * self.k_width + self.v_width

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            linear("in_proj", self.conv_width, d_model, "mixer.in"),  # q, k, v
            *(
                (Weight(name="conv.weight", shape=(self.conv_width, self.conv)),)
                if self.conv
                else ()
            ),
            linear("decay_a_proj", self.gate_rank, d_model, "gate"),
            linear("decay_b_proj", self.k_width, self.gate_rank, "gate"),
            *biases({"decay_b_proj": self.k_width}),
            linear("gate_proj", self.v_width, d_model, "mixer.in"),
            vector("norm.weight", self.v_head_dim),
            linear("out_proj", d_model, self.v_width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        keys, values = (self.heads, self.k_head_dim), (self.heads, self.v_head_dim)
        return linear_mixer_heads(keys, values) | {
            "decay_b_proj": head_rows(decay=keys),
            "gate_proj": head_rows(z=values),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(
            state_elements=self.heads * self.k_head_dim * self.v_head_dim,
            conv_elements=max(0, self.conv - 1) * self.conv_width,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        if self.conv:
            yield convolution(point, self.conv_width, self.conv)
        yield recurrence(
            point,
            k_heads=self.heads,
            heads=self.heads,
            k_dim=self.k_head_dim,
            v_dim=self.v_head_dim,
        )
        yield Rows(rows=point.rows, elements=3 * self.v_width + 2 * self.k_width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        v_head_dim = make_divisible(self.v_head_dim * width_fraction)
        return {
            "heads": max(1, round(self.v_width * width_fraction / v_head_dim)),
            "k_head_dim": make_divisible(self.k_head_dim * width_fraction),
            "v_head_dim": v_head_dim,
        }
