"""Softmax attention with any grouping of heads: MHA, GQA, MQA; global or in a sliding window."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..document import Record
from .block import Block, Cache, Weight, linear, vector


class Rope(Record):
    """Rotary position embedding (arXiv 2104.09864) on the first `partial` of each head."""

    theta: float = Field(default=10_000.0, gt=0)
    partial: float = Field(default=1.0, gt=0, le=1)


class Attention(Block):
    """`heads` query heads share `kv_heads` key and value heads (arXiv 2305.13245).

    `window` limits a query to itself and the `window - 1` tokens before it. `sinks` adds one
    learned logit a head to the softmax denominator. `rope: null` gives no position (NoPE).
    """

    kind: Literal["attn"] = "attn"
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    rope: Rope | None = Rope()
    window: PositiveInt | None = None
    sinks: bool = False
    qk_norm: Literal["none", "head"] = "none"

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads must divide heads, got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.rope and self.rotated % 2:
            raise ValueError(
                f"head_dim * rope.partial must be even, got {self.head_dim} * {self.rope.partial} = {self.rotated}"
            )
        return self

    @property
    def rotated(self) -> int:
        """How many dimensions of a head carry the rotary position."""
        return int(self.head_dim * self.rope.partial) if self.rope else 0

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        q_width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = (vector("q_norm.weight", self.head_dim), vector("k_norm.weight", self.head_dim))
        return (
            linear("q_proj", q_width, d_model, "attention.qkv"),
            linear("k_proj", kv_width, d_model, "attention.qkv"),
            linear("v_proj", kv_width, d_model, "attention.qkv"),
            linear("o_proj", d_model, q_width, "attention.out"),
            *(norms if self.qk_norm == "head" else ()),
            *((vector("sinks", self.heads),) if self.sinks else ()),
        )

    def cache(self) -> Cache:
        return Cache(
            kv_elements=2 * self.kv_heads * self.head_dim,
            kv_scales=2 * self.kv_heads,
            window=self.window,
        )

    def mixing_flops(self, visible: float) -> float:
        return 4 * self.heads * self.head_dim * visible  # Q K^T and P V
