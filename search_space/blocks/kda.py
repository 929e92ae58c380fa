"""Kimi Delta Attention: the delta rule with a decay per key channel."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, linear, make_divisible, vector
from .heads import HeadLayout, head_rows, linear_mixer_heads
from .recurrent import convolution, recurrence


class KDA(Block):
    """Kimi Delta Attention (arXiv 2510.26692): states of k_head_dim x v_head_dim."""

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["kda"] = "kda"
    heads: PositiveInt
    """Heads."""
    k_head_dim: PositiveInt
    """Dimension of query and key heads."""
    v_head_dim: PositiveInt
    """Dimension of value heads."""
    gate_rank: PositiveInt
    """Rank of the projections to the decay and to the output gate."""
    conv: int = Field(default=4, ge=2)
    """Width of the causal convolution over q, k and v."""
    full_rank_gate: bool = False
    """Output gate by a full matrix."""
    gate_lower_bound: float | None = Field(default=None, lt=0)
    """Lower bound b of the log decay, which then is b * sigmoid(x); null: -exp(A_log) *
    softplus(x)."""

    @property
    def letter(self) -> str:
        return "K"

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
        rank = self.gate_rank
        gate = (
            (linear("gate_proj", self.v_width, d_model, "mixer.in"),)
            if self.full_rank_gate
            else (
                linear("gate_a_proj", rank, d_model, "gate"),
                linear("gate_b_proj", self.v_width, rank, "gate"),
            )
        )
        return (
            linear("in_proj", self.conv_width, d_model, "mixer.in"),  # q, k, v
            Weight(name="conv.weight", shape=(self.conv_width, self.conv)),
            linear("decay_a_proj", rank, d_model, "gate"),
            linear("decay_b_proj", self.k_width, rank, "gate"),
            vector("A_log", self.heads),
            vector("dt_bias", self.k_width),
            linear("beta_proj", self.heads, d_model, "gate"),
            *gate,
            vector("norm.weight", self.v_head_dim),
            linear("out_proj", d_model, self.v_width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        keys, values = (self.heads, self.k_head_dim), (self.heads, self.v_head_dim)
        return linear_mixer_heads(keys, values) | {
            "decay_b_proj": head_rows(decay=keys),
            "dt_bias": head_rows(dt=keys),
            "gate_proj": head_rows(z=values),
            "gate_b_proj": head_rows(z=values),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(
            state_elements=self.heads * self.k_head_dim * self.v_head_dim,
            conv_elements=(self.conv - 1) * self.conv_width,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield convolution(point, self.conv_width, self.conv)
        yield recurrence(
            point,
            k_heads=self.heads,
            heads=self.heads,
            k_dim=self.k_head_dim,
            v_dim=self.v_head_dim,
            delta=True,
        )
        yield Rows(rows=point.rows, elements=3 * self.v_width + 2 * self.k_width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        v_head_dim = make_divisible(self.v_head_dim * width_fraction)
        return {
            "heads": max(1, round(self.v_width * width_fraction / v_head_dim)),
            "k_head_dim": make_divisible(self.k_head_dim * width_fraction),
            "v_head_dim": v_head_dim,
            "gate_rank": make_divisible(self.gate_rank * width_fraction),
        }
