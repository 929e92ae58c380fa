"""Gated DeltaNet: the delta rule with a scalar decay per head."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, grouped, linear, make_divisible, vector
from .heads import HeadLayout, head_rows, linear_mixer_heads
from .recurrent import convolution, recurrence


class GatedDeltaNet(Block):
    """Gated DeltaNet (arXiv 2412.06464) in the shape of Qwen3-Next.

    A value head has a state of k_head_dim x v_head_dim.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("v_heads",)
    tp_replicable_dims: ClassVar[tuple[str, ...]] = ("k_heads",)

    kind: Literal["gdn"] = "gdn"
    k_heads: PositiveInt
    """Query and key heads; divides `v_heads`."""
    v_heads: PositiveInt
    """Value heads, each with a state of its own."""
    k_head_dim: PositiveInt
    """Dimension of query and key heads."""
    v_head_dim: PositiveInt
    """Dimension of value heads."""
    conv: int = Field(default=4, ge=2)
    """Width of the causal convolution over q, k and v."""
    gated: bool = True
    """Decay of the state; false: DeltaNet (arXiv 2406.06484)."""
    negative_eigenvalues: bool = False
    """Doubled beta, which allows negative eigenvalues of the transition (arXiv 2411.12537)."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.v_heads % self.k_heads:
            raise ValueError(
                f"k_heads must divide v_heads, got k_heads={self.k_heads}, v_heads={self.v_heads}"
            )
        return self

    @property
    def letter(self) -> str:
        return "G"

    @property
    def k_width(self) -> int:
        """Width of all key heads."""
        return self.k_heads * self.k_head_dim

    @property
    def v_width(self) -> int:
        """Width of all value heads."""
        return self.v_heads * self.v_head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution."""
        return 2 * self.k_width + self.v_width

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            linear("in_proj", self.conv_width + self.v_width, d_model, "mixer.in"),  # q, k, v; z
            linear("gate_proj", (2 if self.gated else 1) * self.v_heads, d_model, "gate"),
            Weight(name="conv.weight", shape=(self.conv_width, self.conv)),
            *(
                (vector("A_log", self.v_heads), vector("dt_bias", self.v_heads))
                if self.gated
                else ()
            ),
            vector("norm.weight", self.v_head_dim),
            linear("out_proj", d_model, self.v_width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        keys, values = (self.k_heads, self.k_head_dim), (self.v_heads, self.v_head_dim)
        rate = (self.v_heads, 1)
        rates = {"b": rate, "a": rate} if self.gated else {"b": rate}
        return linear_mixer_heads(keys, values, z=values) | {"gate_proj": head_rows(**rates)}

    def cache(self, d_model: int) -> Cache:
        return Cache(
            state_elements=self.v_heads * self.k_head_dim * self.v_head_dim,
            conv_elements=(self.conv - 1) * self.conv_width,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield convolution(point, self.conv_width, self.conv)
        yield recurrence(
            point,
            k_heads=self.k_heads,
            heads=self.v_heads,
            k_dim=self.k_head_dim,
            v_dim=self.v_head_dim,
            delta=True,
        )
        yield Rows(rows=point.rows, elements=3 * self.v_width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        v_head_dim = make_divisible(self.v_head_dim * width_fraction)
        v_heads, k_heads = grouped(
            self.v_heads, self.k_heads, self.v_head_dim * width_fraction / v_head_dim
        )
        return {
            "k_heads": k_heads,
            "v_heads": v_heads,
            "k_head_dim": make_divisible(self.k_head_dim * width_fraction),
            "v_head_dim": v_head_dim,
        }
