"""Compressed-KV attention: shared key-value vectors, old tokens pooled into few entries."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from ..operators import (
    AttentionDecode,
    AttentionPrefill,
    NumberFormat,
    Operator,
    Point,
    Rows,
    SelectedAttention,
    masked_attention,
    visible,
)
from .block import Block, Cache, Weight, linear, make_divisible, vector
from .mla import Indexer
from .rope import Rope


class CompressedAttention(Block):
    """Compressed-KV attention of DeepSeek-V4: one vector is key and value of all heads.

    The last `window` tokens are kept as they are; older ones are pooled into few entries. The
    rotated part comes last in a head and is rotated back in the output, which then has low rank
    `o_lora_rank` in each of `o_groups`. Parameter names and shapes: transformers,
    models/deepseek_v4.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads", "o_groups")

    kind: Literal["compressed"] = "compressed"
    heads: PositiveInt
    """Query heads."""
    head_dim: PositiveInt
    """Dimension of a query head and of the shared key-value vector."""
    q_lora_rank: PositiveInt
    """Rank of the query projection."""
    o_groups: PositiveInt
    """Groups of heads in the output projection; divides `heads`."""
    o_lora_rank: PositiveInt
    """Rank of the output projection per group."""
    window: PositiveInt
    """Last tokens that are kept uncompressed."""
    compress: PositiveInt | None = None
    """Tokens that are pooled into one entry by a learned softmax; null: only the window."""
    overlap: bool = False
    """Pool each group with the tokens before it, from a second set of projections."""
    indexer: Indexer | None = None
    """Selection among the pooled entries, by keys that are pooled the same way."""
    sinks: bool = False
    """One learned logit per head in the softmax denominator."""
    rope: Rope | None = Rope()
    """Rotary positions; null: none."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.heads % self.o_groups:
            raise ValueError(
                f"o_groups must divide heads, got heads={self.heads}, o_groups={self.o_groups}"
            )
        if self.compress is None and (self.indexer or self.overlap):
            raise ValueError("indexer and overlap need compress, got compress=None")
        return self

    @property
    def letter(self) -> str:
        return "Z" if self.compress else "W"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        width, rank = self.heads * self.head_dim, self.o_groups * self.o_lora_rank
        return (
            linear("q_a_proj", self.q_lora_rank, d_model, "attention.qkv"),
            vector("q_a_norm.weight", self.q_lora_rank),
            linear("q_b_proj", width, self.q_lora_rank, "attention.qkv"),
            linear("kv_proj", self.head_dim, d_model, "attention.qkv"),
            vector("kv_norm.weight", self.head_dim),
            *((vector("sinks", self.heads),) if self.sinks else ()),
            linear("o_a_proj", rank, width // self.o_groups, "attention.out"),
            linear("o_b_proj", d_model, rank, "attention.out"),
            *self._compressor_weights(d_model),
        )

    def _compressor_weights(self, d_model: int) -> tuple[Weight, ...]:
        if self.compress is None:
            return ()
        pooled = self._pooling("compressor.", self.compress, self.head_dim, d_model)
        if self.indexer is None:
            return pooled
        prefix, index = "compressor.indexer.", self.indexer
        queries = index.heads * index.head_dim
        return (
            *pooled,
            *self._pooling(prefix, self.compress, index.head_dim, d_model),
            linear(f"{prefix}q_b_proj", queries, self.q_lora_rank, "attention.qkv"),
            linear(f"{prefix}head_proj", index.heads, d_model, "gate"),
        )

    def _pooling(self, prefix: str, compress: int, width: int, d_model: int) -> tuple[Weight, ...]:
        wide = 2 * width if self.overlap else width
        return (
            Weight(name=f"{prefix}position_bias", shape=(compress, wide)),
            linear(f"{prefix}kv_proj", wide, d_model, "attention.qkv"),
            linear(f"{prefix}gate_proj", wide, d_model, "gate"),
            vector(f"{prefix}kv_norm.weight", width),
        )

    def cache(self, d_model: int) -> Cache:
        return Cache(
            kv_elements=self.head_dim,
            kv_scales=1,
            window=self.window,
            compressed_elements=self.head_dim if self.compress else 0,
            index_elements=self.indexer.head_dim if self.indexer else 0,
            every=self.compress or 1,
            selected=self.indexer.top_k if self.indexer else None,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        size = {
            "heads": self.heads,
            "kv_heads": 1,
            "head_dim": self.head_dim,
            "v_head_dim": self.head_dim,
        }
        yield Rows(
            rows=point.rows, elements=3 * self.heads * self.head_dim
        )  # rotation, there and back
        if point.decode:
            seen = visible(point.context, self.window)
            yield AttentionDecode(batch=point.batch, context=seen, kv=kv, **size)
        else:
            window = self.window if self.window < point.tokens else None
            yield AttentionPrefill(
                batch=point.batch, tokens=point.tokens, window=window, kv=kv, **size
            )
        if self.compress:
            yield Rows(rows=point.rows, elements=2 * self.head_dim * (2 if self.overlap else 1))
            yield from self._pooled(point, point.context // self.compress, size)

    def _pooled(self, point: Point, entries: int, size: dict[str, int]) -> Iterator[Operator]:
        """Attention over pooled entries: those an indexer selects, or all of them under a mask."""
        if self.indexer:
            yield self.indexer.scores(point, every=self.compress or 1)
        if self.indexer and self.indexer.top_k < entries:
            yield SelectedAttention(
                batch=point.batch,
                rows=point.tokens,
                keys=entries,
                selected=self.indexer.top_k,
                heads=self.heads,
                head_dim=self.head_dim,
                v_head_dim=self.head_dim,
            )
        elif entries:
            yield from masked_attention(
                batch=point.batch, tokens=point.tokens, keys=entries, **size
            )

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        groups = max(1, round(self.o_groups * width_fraction))
        index = self.indexer
        return {
            "heads": groups
            * max(1, round(self.heads * self.head_dim * width_fraction / head_dim / groups)),
            "head_dim": head_dim,
            "q_lora_rank": make_divisible(self.q_lora_rank * width_fraction),
            "o_groups": groups,
            "o_lora_rank": make_divisible(self.o_lora_rank * width_fraction),
            "window": max(4, round(self.window * context_fraction)),
            "compress": self.compress and max(2, round(self.compress * context_fraction)),
            "indexer": index and index.proxy_fields(width_fraction, context_fraction),
        }
