"""Shared-weight block: a few physical transformer layers that are used many times."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from ..operators import AttentionDecode, AttentionPrefill, NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, grouped, linear, make_divisible, vector
from .feed_forward import Activation, up_projections
from .heads import HeadLayout, head_columns, head_rows
from .rope import Rope


class SharedBlock(Block):
    """Shared attention and feed-forward of Zamba2 (arXiv 2411.15242).

    The attention reads the hidden state beside the token embedding, 2 * d_model wide; its softmax
    scale is (head_dim / 2)**-0.5. Each use has its own low-rank adapter on the up projection, its
    own output projection and its own KV cache. The output is added to the input of the next block,
    not to the residual stream.
    """

    own_norms = True

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads", "width")
    tp_replicable_dims: ClassVar[tuple[str, ...]] = ("kv_heads",)

    kind: Literal["shared"] = "shared"
    copies: PositiveInt | None = 1
    """Physical blocks, used in turn."""
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key and value heads; divides `heads`."""
    head_dim: PositiveInt
    """Dimension of a head."""
    width: PositiveInt
    """Hidden features of the feed-forward."""
    activation: Activation = "geglu"
    """Activation of the feed-forward, see `ffn`."""
    adapter_rank: PositiveInt
    """Rank of the adapter of each use."""
    rope: Rope | None = None
    """Rotary positions; null: none."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads must divide heads, got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        return self

    @property
    def letter(self) -> str:
        return "@"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        q_width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        into = up_projections(self.activation)
        adapted = len(into) * self.width
        return (
            vector("attention_norm.weight", 2 * d_model),
            linear("q_proj", q_width, 2 * d_model, "attention.qkv"),
            linear("k_proj", kv_width, 2 * d_model, "attention.qkv"),
            linear("v_proj", kv_width, 2 * d_model, "attention.qkv"),
            linear("o_proj", d_model, q_width, "attention.out"),
            vector("ffn_norm.weight", d_model),
            *(linear(name, self.width, d_model, "ffn.up") for name in into),
            linear("down_proj", d_model, self.width, "ffn.down"),
            linear("adapter_a_proj", self.adapter_rank, d_model, "gate", owner="use"),
            linear("adapter_b_proj", adapted, self.adapter_rank, "gate", owner="use"),
            linear("use_proj", d_model, d_model, "ffn.down", owner="use"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        queries, shared = (self.heads, self.head_dim), (self.kv_heads, self.head_dim)
        return {
            "q_proj": head_rows(q=queries),
            "k_proj": head_rows(k=shared),
            "v_proj": head_rows(v=shared),
            "o_proj": head_columns(o=queries),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(
            kv_elements=2 * self.kv_heads * self.head_dim,
            kv_scales=2 * self.kv_heads,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        size = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "v_head_dim": self.head_dim,
        }
        yield Rows(rows=point.rows, elements=2 * 2 * d_model)
        if point.decode:
            yield AttentionDecode(batch=point.batch, context=point.context, kv=kv, **size)
        else:
            yield AttentionPrefill(batch=point.batch, tokens=point.tokens, kv=kv, **size)
        yield Rows(rows=point.rows, elements=2 * d_model)
        yield Rows(rows=point.rows, elements=3 * self.width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        heads, kv_heads = grouped(
            self.heads, self.kv_heads, self.head_dim * width_fraction / head_dim
        )
        return {
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "width": make_divisible(self.width * width_fraction),
            "adapter_rank": make_divisible(self.adapter_rank * width_fraction),
        }
