"""Retention: a linear mixer with a fixed decay per head and rotated keys."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, linear, make_divisible
from .heads import HeadLayout, head_rows, linear_mixer_heads
from .recurrent import recurrence


class Retention(Block):
    """Multi-scale retention of RetNet (arXiv 2307.08621): states of k_head_dim x v_head_dim.

    A weightless norm of each head and a SiLU gate precede the output projection.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["retention"] = "retention"
    heads: PositiveInt
    """Heads."""
    k_head_dim: PositiveInt
    """Dimension of query and key heads; even."""
    v_head_dim: PositiveInt
    """Dimension of value heads."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.k_head_dim % 2:
            raise ValueError(
                f"k_head_dim must be even, as pairs are rotated, got {self.k_head_dim}"
            )
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

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            linear("in_proj", 2 * self.k_width + self.v_width, d_model, "mixer.in"),  # q, k, v
            linear("gate_proj", self.v_width, d_model, "mixer.in"),
            linear("out_proj", d_model, self.v_width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        keys, values = (self.heads, self.k_head_dim), (self.heads, self.v_head_dim)
        return linear_mixer_heads(keys, values) | {"gate_proj": head_rows(z=values)}

    def cache(self, d_model: int) -> Cache:
        return Cache(state_elements=self.heads * self.k_head_dim * self.v_head_dim)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield Rows(rows=point.rows, elements=4 * self.k_width)  # rotation
        yield recurrence(
            point,
            k_heads=self.heads,
            heads=self.heads,
            k_dim=self.k_head_dim,
            v_dim=self.v_head_dim,
        )
        yield Rows(rows=point.rows, elements=3 * self.v_width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        v_head_dim = make_divisible(self.v_head_dim * width_fraction)
        return {
            "heads": max(1, round(self.v_width * width_fraction / v_head_dim)),
            "k_head_dim": make_divisible(self.k_head_dim * width_fraction),
            "v_head_dim": v_head_dim,
        }
