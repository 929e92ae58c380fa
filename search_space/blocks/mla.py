"""Multi-head latent attention: keys and values of all heads from one cached latent."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..document import Terse
from ..operators import (
    AttentionDecode,
    IndexScores,
    MLADecode,
    MLAPrefill,
    NumberFormat,
    Operator,
    Point,
    Rows,
    SelectedAttention,
    visible,
)
from .block import Block, Cache, Weight, biases, linear, make_divisible, vector
from .heads import HeadLayout, head_columns, head_rows
from .rope import Rope


class Indexer(Terse):
    """Lightning indexer of DeepSeek Sparse Attention (DeepSeek-V3.2-Exp)."""

    heads: PositiveInt
    """Query heads; one key per token serves all of them."""
    head_dim: PositiveInt
    """Dimension of a head."""
    top_k: PositiveInt
    """Cached tokens that a query reads."""

    def scores(self, point: Point, *, every: int = 1) -> IndexScores:
        """The operator call that scores one key per `every` tokens of the context."""
        return IndexScores(
            batch=point.batch,
            rows=point.tokens,
            keys=max(1, point.context // every),
            heads=self.heads,
            head_dim=self.head_dim,
        )

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        """The fields in a proxy model, see `Block.proxy_fields`."""
        return {
            "heads": max(1, round(self.heads * width_fraction)),
            "head_dim": make_divisible(self.head_dim * width_fraction),
            "top_k": max(4, round(self.top_k * context_fraction)),
        }


class MLA(Block):
    """Multi-head latent attention of DeepSeek-V2 (arXiv 2405.04434) with decoupled rotary keys.

    A token caches kv_lora_rank + qk_rope_head_dim numbers, whatever `heads` is.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["mla"] = "mla"
    heads: PositiveInt
    """Heads."""
    q_lora_rank: PositiveInt | None = None
    """Rank of the query projection; null: full rank."""
    kv_lora_rank: PositiveInt
    """Size of the latent that keys and values of all heads are projected from."""
    qk_nope_head_dim: PositiveInt
    """Dimensions of a query and key head without positions."""
    qk_rope_head_dim: PositiveInt
    """Dimensions of a query and key head with rotary positions; even."""
    v_head_dim: PositiveInt
    """Dimension of value heads."""
    rope: Rope | None = Rope()
    """Rotary positions; null: the rotary part stays unrotated."""
    indexer: Indexer | None = None
    """Selection of the cached tokens that a query reads; needs `q_lora_rank`."""
    out_gate: bool = False
    """Sigmoid gate of the input on each output element."""
    softmax_scale: float | None = Field(default=None, gt=0)
    """Scale of the logits; null: (qk_nope_head_dim + qk_rope_head_dim)**-0.5."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, got {self.qk_rope_head_dim}")
        if self.rope and self.rope.partial != 1:
            raise ValueError(
                "rope.partial must be 1, as the rotary part is qk_rope_head_dim, "
                f"got {self.rope.partial}"
            )
        if self.indexer and self.q_lora_rank is None:
            raise ValueError("an indexer needs q_lora_rank, got q_lora_rank=None")
        return self

    @property
    def letter(self) -> str:
        return "S" if self.indexer else "L"

    @property
    def qk_head_dim(self) -> int:
        """Dimension of a query and key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        q_width = self.heads * self.qk_head_dim
        if self.q_lora_rank is None:
            queries = (linear("q_proj", q_width, d_model, "attention.qkv"),)
        else:
            queries = (
                linear("q_a_proj", self.q_lora_rank, d_model, "attention.qkv"),
                vector("q_a_norm.weight", self.q_lora_rank),
                linear("q_b_proj", q_width, self.q_lora_rank, "attention.qkv"),
            )
        expanded = self.heads * (self.qk_nope_head_dim + self.v_head_dim)
        o_width = self.heads * self.v_head_dim
        return (
            *queries,
            linear(
                "kv_a_proj", self.kv_lora_rank + self.qk_rope_head_dim, d_model, "attention.qkv"
            ),
            vector("kv_a_norm.weight", self.kv_lora_rank),
            linear("kv_b_proj", expanded, self.kv_lora_rank, "attention.qkv"),
            *((linear("gate_proj", o_width, d_model, "attention.qkv"),) if self.out_gate else ()),
            linear("o_proj", d_model, o_width, "attention.out"),
            *self._index_weights(d_model),
        )

    def _index_weights(self, d_model: int) -> tuple[Weight, ...]:
        index = self.indexer
        if index is None:
            return ()
        assert self.q_lora_rank is not None
        queries = index.heads * index.head_dim
        return (
            linear("indexer.q_b_proj", queries, self.q_lora_rank, "attention.qkv"),
            linear("indexer.k_proj", index.head_dim, d_model, "attention.qkv"),
            vector("indexer.k_norm.weight", index.head_dim),
            *biases({"indexer.k_norm": index.head_dim}),
            linear("indexer.head_proj", index.heads, d_model, "gate"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        queries = head_rows(latent_q=(self.heads, self.qk_head_dim))
        values = (self.heads, self.v_head_dim)
        expanded = (self.heads, self.qk_nope_head_dim + self.v_head_dim)
        return {
            "q_proj": queries,
            "q_b_proj": queries,
            "kv_a_proj": head_rows(latent=(1, self.kv_lora_rank), rope=(1, self.qk_rope_head_dim)),
            "kv_b_proj": head_rows(latent_kv=expanded),
            "gate_proj": head_rows(latent_z=values),
            "o_proj": head_columns(latent_o=values),
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(
            kv_elements=self.kv_lora_rank + self.qk_rope_head_dim,
            kv_scales=1,
            index_elements=self.indexer.head_dim if self.indexer else 0,
            selected=self.indexer.top_k if self.indexer else None,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield Rows(rows=point.rows, elements=2 * (self.kv_lora_rank + (self.q_lora_rank or 0)))
        if self.indexer:
            yield self.indexer.scores(point)
        if self.indexer and self.indexer.top_k < point.context:
            yield SelectedAttention(
                batch=point.batch,
                rows=point.tokens,
                keys=point.context,
                selected=self.indexer.top_k,
                heads=self.heads,
                head_dim=self.kv_lora_rank + self.qk_rope_head_dim,
                v_head_dim=self.kv_lora_rank,
            )
        elif point.decode:
            yield MLADecode(
                batch=point.batch,
                context=point.context,
                heads=self.heads,
                kv_lora_rank=self.kv_lora_rank,
                qk_rope_head_dim=self.qk_rope_head_dim,
                kv=kv,
            )
        else:
            yield MLAPrefill(
                batch=point.batch,
                tokens=point.tokens,
                heads=self.heads,
                qk_head_dim=self.qk_head_dim,
                v_head_dim=self.v_head_dim,
            )
        if self.out_gate:
            yield Rows(rows=point.rows, elements=3 * self.heads * self.v_head_dim)

    def operator_flops(self, d_model: int, context: int) -> float:
        """In the expanded form of training and prefill; decoding runs the absorbed form."""
        scored = 0.0
        if self.indexer:
            scored = self.indexer.scores(Point(batch=1, tokens=1, context=context)).flops
        expanded = AttentionDecode(
            batch=1,
            context=visible(context, self.indexer.top_k if self.indexer else None),
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.qk_head_dim,
            v_head_dim=self.v_head_dim,
        )
        return scored + expanded.flops

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        v_head_dim = make_divisible(self.v_head_dim * width_fraction)
        index = self.indexer
        return {
            "heads": max(1, round(self.heads * self.v_head_dim * width_fraction / v_head_dim)),
            "q_lora_rank": self.q_lora_rank and make_divisible(self.q_lora_rank * width_fraction),
            "kv_lora_rank": make_divisible(self.kv_lora_rank * width_fraction),
            "qk_nope_head_dim": make_divisible(self.qk_nope_head_dim * width_fraction),
            "qk_rope_head_dim": make_divisible(self.qk_rope_head_dim * width_fraction),
            "v_head_dim": v_head_dim,
            "indexer": index and index.proxy_fields(width_fraction, context_fraction),
        }
