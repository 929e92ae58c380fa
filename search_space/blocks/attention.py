"""Softmax attention with grouped heads: global, windowed, chunked or block-sparse."""

from collections.abc import Iterator
from math import ceil, log2
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ..document import Terse
from ..operators import (
    AttentionDecode,
    AttentionPrefill,
    Gemm,
    NumberFormat,
    Operator,
    Point,
    Rows,
    masked_attention,
    visible,
)
from .block import Block, Cache, Weight, biases, grouped, linear, make_divisible, vector
from .heads import HeadLayout, head_columns, head_rows
from .rope import Rope


class BlockSparse(Terse):
    """Block-sparse attention: a query reads `top_k` blocks of keys (MoBA, arXiv 2502.13189).

    Blocks are scored by pooled keys, or with `index_heads` by an index branch: one normed query per
    index head, one normed key for all (MiniMax-M3).
    """

    block: PositiveInt
    """Tokens per block."""
    top_k: PositiveInt
    """Blocks that a query reads, `local_blocks` included."""
    local_blocks: PositiveInt = 1
    """Nearest blocks that a query always reads, its own first."""
    index_heads: NonNegativeInt = 0
    """Query heads of the index branch; 0 scores blocks by pooled keys."""
    index_dim: PositiveInt = 128
    """Head dimension of the index branch."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.local_blocks > self.top_k:
            raise ValueError(
                f"local_blocks may be at most top_k, got local_blocks={self.local_blocks}, "
                f"top_k={self.top_k}"
            )
        return self


def _kernel_block(size: float) -> int:
    """The nearest block size that the kernel takes: a power of two from 16 on."""
    return max(16, 2 ** round(log2(size)))


def list_heads(heads: int, kv_heads: int, index_heads: int) -> int:
    """Groups of query heads that share both a list of blocks and a key head."""
    least, most = sorted((kv_heads, index_heads))
    return most if most % least == 0 else heads


class Temperature(Terse):
    """Position-dependent query scale: 1 + `scale` * log(1 + floor(position / `floor`))."""

    scale: float = Field(gt=0)
    """Factor of the logarithm."""
    floor: PositiveInt
    """Positions after which the scale grows."""


class Attention(Block):
    """Softmax attention with grouped heads (arXiv 2305.13245).

    A query attends to all earlier tokens, or to those in its `window`, its `chunk` or the blocks
    chosen by `block_sparse`.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)
    tp_replicable_dims: ClassVar[tuple[str, ...]] = ("kv_heads",)

    kind: Literal["attn"] = "attn"
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key and value heads; divides `heads`."""
    head_dim: PositiveInt
    """Dimension of query and key heads."""
    v_head_dim: PositiveInt | None = None
    """Dimension of value heads; null: `head_dim`."""
    rope: Rope | None = Rope()
    """Rotary positions; null: none (NoPE)."""
    relative_buckets: PositiveInt | None = None
    """Buckets of T5's learned position bias, which the first layer of a stack has for all."""
    window: PositiveInt | None = None
    """Tokens that a query attends to, itself included (sliding window)."""
    dilation: PositiveInt = 1
    """Distance in tokens between the keys of a window (Longformer, arXiv 2004.05150)."""
    global_tokens: NonNegativeInt = 0
    """First tokens of a text that stay visible beside a window (StreamingLLM, arXiv 2309.17453)."""
    chunk: PositiveInt | None = None
    """Length of the chunks that attention is restricted to."""
    block_sparse: BlockSparse | None = None
    """Selection of blocks of keys."""
    sinks: bool = False
    """One learned logit per head in the softmax denominator."""
    qk_norm: Literal["none", "head", "full", "l2"] = "none"
    """RMSNorm of queries and keys: per head, over all heads (`full`), or weightless after the
    rotation (`l2`)."""
    out_gate: Literal["none", "elementwise", "headwise"] = "none"
    """Sigmoid gate of the input on each output element or head."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    o_bias: bool = False
    """Bias of the output projection."""
    k_eq_v: bool = False
    """Values are projected with the matrix of the keys; both are cached."""
    v_norm: bool = False
    """Weightless RMSNorm of the values per head."""
    kv_reuse: bool = False
    """Read keys and values of the nearest earlier block that has its own."""
    cross: bool = False
    """Cross attention: keys and values come from the encoder's output."""
    logit_softcap: float | None = Field(default=None, gt=0)
    """c in c * tanh(logits / c) before the softmax."""
    softmax_scale: float | None = Field(default=None, gt=0)
    """Scale of the logits; null: head_dim**-0.5."""
    value_scale: float = Field(default=1.0, gt=0)
    """Factor of the values."""
    temperature: Temperature | None = None
    """Position-dependent scale of the queries."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads must divide heads, got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.rope and self.rotated % 2:
            raise ValueError(
                f"head_dim * rope.partial must be even, "
                f"got {self.head_dim} * {self.rope.partial} = {self.rotated}"
            )
        if self.k_eq_v and self.value_dim != self.head_dim:
            raise ValueError(
                "k_eq_v needs v_head_dim equal to head_dim, got "
                f"v_head_dim={self.value_dim}, head_dim={self.head_dim}"
            )
        reaches = {"window": self.window, "chunk": self.chunk, "block_sparse": self.block_sparse}
        if len(given := [name for name, value in reaches.items() if value is not None]) > 1:
            raise ValueError(f"window, chunk and block_sparse exclude each other, got {given}")
        if self.window is None and (self.dilation > 1 or self.global_tokens):
            raise ValueError(
                "dilation and global_tokens need a window, got "
                f"dilation={self.dilation}, global_tokens={self.global_tokens}, window=None"
            )
        return self

    @property
    def letter(self) -> str:
        return (
            "&" if self.cross
            else "W" if self.window
            else "C" if self.chunk
            else "S" if self.block_sparse
            else "*"
        )  # fmt: skip

    @property
    def value_dim(self) -> int:
        """Dimension of value heads."""
        return self.v_head_dim or self.head_dim

    @property
    def reach(self) -> int | None:
        """Tokens from a query back to the farthest key of its window, both included."""
        return self.window and (self.window - 1) * self.dilation + 1

    @property
    def rotated(self) -> int:
        """Rotated dimensions of a head."""
        return self.rope.rotated(self.head_dim) if self.rope else 0

    @property
    def q_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_dim

    @property
    def o_width(self) -> int:
        """Width of all heads of the output."""
        return self.heads * self.value_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        into = {"q_proj": self.q_width}
        if not self.kv_reuse:
            into["k_proj"] = self.kv_width
            if not self.k_eq_v:
                into["v_proj"] = self.kv_heads * self.value_dim
        gate = {"none": 0, "elementwise": self.o_width, "headwise": self.heads}[self.out_gate]
        normed = {"q_norm": self.head_dim, "k_norm": self.head_dim}
        if self.qk_norm == "full":
            normed = {"q_norm": self.q_width, "k_norm": self.kv_width}
        if self.kv_reuse:
            del normed["k_norm"]
        return (
            *(linear(name, width, d_model, "attention.qkv") for name, width in into.items()),
            *((linear("gate_proj", gate, d_model, "attention.qkv"),) if gate else ()),
            *(biases(into) if self.qkv_bias else ()),
            linear("o_proj", d_model, self.o_width, "attention.out"),
            *(biases({"o_proj": d_model}) if self.o_bias else ()),
            *(
                vector(f"{name}.weight", width)
                for name, width in normed.items()
                if self.qk_norm in ("head", "full")
            ),
            *((vector("sinks", self.heads),) if self.sinks else ()),
            *self._position_weights(),
            *self._index_weights(d_model),
        )

    def _position_weights(self) -> tuple[Weight, ...]:
        if self.relative_buckets is None:
            return ()
        shape = (self.relative_buckets, self.heads)
        return (Weight(name="relative_bias", shape=shape, owner="first"),)

    def _index_weights(self, d_model: int) -> tuple[Weight, ...]:
        sparse = self.block_sparse
        if sparse is None or not sparse.index_heads:
            return ()
        queries = sparse.index_heads * sparse.index_dim
        return (
            linear("index.q_proj", queries, d_model, "attention.qkv"),
            linear("index.k_proj", sparse.index_dim, d_model, "attention.qkv"),
            vector("index.q_norm.weight", sparse.index_dim),
            vector("index.k_norm.weight", sparse.index_dim),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        gate = self.value_dim if self.out_gate == "elementwise" else 1
        return {
            "q_proj": head_rows(q=(self.heads, self.head_dim)),
            "k_proj": head_rows(k=(self.kv_heads, self.head_dim)),
            "v_proj": head_rows(v=(self.kv_heads, self.value_dim)),
            "gate_proj": head_rows(z=(self.heads, gate)),
            "o_proj": head_columns(o=(self.heads, self.value_dim)),
        }

    def cache(self, d_model: int) -> Cache:
        if self.kv_reuse or self.cross:  # cached by another block, or of fixed length
            return Cache()
        sparse = self.block_sparse
        return Cache(
            kv_elements=self.kv_heads * (self.head_dim + self.value_dim),
            kv_scales=2 * self.kv_heads,
            window=self._cached or self.chunk,
            index_elements=sparse.index_dim if sparse and sparse.index_heads else 0,
            selected=self._selected,
        )

    @property
    def _cached(self) -> int | None:
        return self.reach and self.reach + self.global_tokens

    @property
    def _selected(self) -> int | None:
        """Cached positions that a query reads at most."""
        if self.block_sparse:
            return self.block_sparse.top_k * self.block_sparse.block
        return self.window and self.window + self.global_tokens

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        size = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "v_head_dim": self.value_dim,
        }
        if self.rope or self.qk_norm != "none":
            yield Rows(rows=point.rows, elements=2 * (self.q_width + self.kv_width))
        cached = visible(point.context, self._cached or self.chunk)
        if self.block_sparse:
            yield from self._over_blocks(self.block_sparse, point, kv)
        elif not point.decode:
            yield from self._prefill(point, kv, size)
        elif self.dilation > 1:
            yield from masked_attention(batch=point.batch, tokens=1, keys=cached, **size)
        else:
            seen = visible(cached, self._selected)
            yield AttentionDecode(batch=point.batch, context=seen, kv=kv, **size)
        if self.out_gate != "none":
            yield Rows(rows=point.rows, elements=3 * self.o_width)

    def _over_blocks(
        self, sparse: BlockSparse, point: Point, kv: NumberFormat
    ) -> Iterator[Operator]:
        """Scores of the blocks, then attention over the best of them, listed per group of heads."""
        scorers, width, keys = self.heads, self.head_dim, ceil(point.context / sparse.block)
        if sparse.index_heads:
            scorers, width, keys = sparse.index_heads, sparse.index_dim, keys * sparse.block
        yield Gemm(m=point.rows * scorers, n=keys, k=width)
        selected = sparse.top_k * sparse.block
        lists = list_heads(self.heads, self.kv_heads, scorers)
        size = {"head_dim": self.head_dim, "v_head_dim": self.value_dim}
        if point.decode:  # the selected pages of each list are a sequence of their own
            yield AttentionDecode(
                batch=point.batch * lists,
                context=visible(point.context, selected),
                heads=self.heads // lists,
                kv_heads=1,
                kv=kv,
                **size,
            )
        elif self.logit_softcap:  # the kernel has none
            yield from masked_attention(
                batch=point.batch,
                tokens=point.tokens,
                keys=point.tokens,
                heads=self.heads,
                kv_heads=self.kv_heads,
                **size,
            )
        else:
            yield AttentionPrefill(
                batch=point.batch,
                tokens=point.tokens,
                heads=self.heads,
                kv_heads=lists,
                window=selected if selected < point.tokens else None,
                kv=kv,
                **size,
            )

    def _prefill(self, point: Point, kv: NumberFormat, size: dict[str, int]) -> Iterator[Operator]:
        """Texts are cut into chunks, or into `dilation` interleaved ones, that attend alone."""
        texts = ceil(point.tokens / self.chunk) if self.chunk else self.dilation
        tokens = ceil(point.tokens / texts)
        yield AttentionPrefill(
            batch=point.batch * texts,
            tokens=tokens,
            window=self.window if self.window and self.window < tokens else None,
            kv=kv,
            **size,
        )
        if self.global_tokens:
            first = min(self.global_tokens, point.tokens)
            yield from masked_attention(batch=point.batch, tokens=point.tokens, keys=first, **size)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        heads, kv_heads = grouped(
            self.heads, self.kv_heads, self.head_dim * width_fraction / head_dim
        )

        def nearer(length: int | None) -> int | None:
            return length and max(4, round(length * context_fraction))

        sparse = self.block_sparse
        return {
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "v_head_dim": self.v_head_dim and make_divisible(self.v_head_dim * width_fraction),
            "window": nearer(self.window),
            "chunk": nearer(self.chunk),
            "block_sparse": sparse
            and sparse.model_dump()
            | {
                "block": _kernel_block(sparse.block * context_fraction),
                "index_dim": make_divisible(sparse.index_dim * width_fraction),
            },
            "temperature": self.temperature
            and self.temperature.model_dump() | {"floor": nearer(self.temperature.floor)},
        }
