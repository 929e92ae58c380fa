"""Lightning attention: a linear mixer with a fixed decay per head and layer."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, linear, make_divisible, vector
from .heads import HeadLayout, head_columns, head_rows
from .recurrent import recurrence


class Lightning(Block):
    """Lightning attention (arXiv 2405.17381) as in MiniMax-01: states of head_dim x head_dim.

    Queries, keys and values pass a SiLU. One RMSNorm over all heads and a sigmoid gate of the input
    precede the output projection.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["lightning"] = "lightning"
    heads: PositiveInt
    """Heads."""
    head_dim: PositiveInt
    """Dimension of query, key and value heads."""

    @property
    def letter(self) -> str:
        return "T"

    @property
    def width(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            linear("in_proj", 3 * self.width, d_model, "mixer.in"),  # q, k, v
            linear("gate_proj", self.width, d_model, "mixer.in"),
            vector("norm.weight", self.width),
            linear("out_proj", d_model, self.width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        size = (self.heads, self.head_dim)
        return {
            "in_proj": HeadLayout(
                axis=0, parts={"q": size, "k": size, "v": size}, interleaved=True
            ),
            "gate_proj": head_rows(z=size),
            "norm": head_rows(norm=size),
            "out_proj": head_columns(o=size),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(state_elements=self.heads * self.head_dim**2)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield Rows(rows=point.rows, elements=6 * self.width)
        yield recurrence(
            point,
            k_heads=self.heads,
            heads=self.heads,
            k_dim=self.head_dim,
            v_dim=self.head_dim,
        )
        yield Rows(rows=point.rows, elements=3 * self.width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        return {
            "heads": max(1, round(self.width * width_fraction / head_dim)),
            "head_dim": head_dim,
        }
