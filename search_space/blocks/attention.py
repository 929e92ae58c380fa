"""Softmax attention with any grouping of heads: global, windowed, chunked or block-sparse."""

from collections.abc import Iterator
from math import ceil
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ..document import Terse
from ..operators import (
    AttentionDecode,
    AttentionPrefill,
    IndexScores,
    NumberFormat,
    Operator,
    Point,
    Rows,
    masked_attention,
    visible,
)
from .block import Block, Cache, Weight, biases, grained, grouped, linear, vector
from .heads import HeadLayout, head_columns, head_rows
from .rope import Rope


class BlockSparse(Terse):
    """A query reads `top_k` blocks of `block` keys (MoBA, arXiv 2502.13189), chosen by pooled keys.

    `local_blocks` of them are the nearest ones, its own first, which it always reads. With
    `index_heads`, a small index branch of its own scores the blocks: one normed query of
    `index_dim` for each of these heads, one normed key for all (MiniMax-M3).
    """

    block: PositiveInt
    top_k: PositiveInt
    local_blocks: PositiveInt = 1
    index_heads: NonNegativeInt = 0
    index_dim: PositiveInt = 128

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.local_blocks > self.top_k:
            raise ValueError(
                f"local_blocks are among the top_k, got {self.local_blocks} of top_k={self.top_k}"
            )
        return self


class Temperature(Terse):
    """Queries grow with their position: 1 + `scale` * log(1 + floor(position / `floor`))."""

    scale: float = Field(gt=0)
    floor: PositiveInt


class Attention(Block):
    """`heads` query heads share `kv_heads` key and value heads (arXiv 2305.13245).

    What a query sees: all tokens before it; with `window`, itself and the `window - 1` before it;
    with `chunk`, those in its own chunk of that length; with `block_sparse`, chosen blocks. The keys
    of a window may lie `dilation` tokens apart; the first `global_tokens` of a text stay in sight
    (Longformer, arXiv 2004.05150; StreamingLLM, arXiv 2309.17453).
    `sinks` adds one learned logit a head to the softmax denominator. `rope: null` gives no
    position (NoPE). `qk_norm` is over each head, over all heads at once (`full`), or the weightless
    `l2` after the rotation. `out_gate` multiplies each output element, or each head, by a sigmoid
    of the input. `k_eq_v` projects values with the matrix of the keys; both are cached. `v_norm`
    gives values an RMSNorm a head, without a weight. `kv_reuse` reads the keys and values of the
    nearest earlier block that made some. `cross` reads an encoder's output. `relative_buckets`
    is T5's learned position bias, which the first layer of a stack has for all.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)
    tp_replicable_dims: ClassVar[tuple[str, ...]] = ("kv_heads",)

    kind: Literal["attn"] = "attn"
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    v_head_dim: PositiveInt | None = None  # as head_dim
    rope: Rope | None = Rope()
    relative_buckets: PositiveInt | None = None
    window: PositiveInt | None = None
    dilation: PositiveInt = 1
    global_tokens: NonNegativeInt = 0
    chunk: PositiveInt | None = None
    block_sparse: BlockSparse | None = None
    sinks: bool = False
    qk_norm: Literal["none", "head", "full", "l2"] = "none"
    out_gate: Literal["none", "elementwise", "headwise"] = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    k_eq_v: bool = False
    v_norm: bool = False
    kv_reuse: bool = False
    cross: bool = False
    logit_softcap: float | None = Field(default=None, gt=0)
    softmax_scale: float | None = Field(default=None, gt=0)  # head_dim**-0.5
    value_scale: float = Field(default=1.0, gt=0)
    temperature: Temperature | None = None

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads must divide heads, got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.rope and self.rotated % 2:
            raise ValueError(
                f"head_dim * rope.partial must be even, got {self.head_dim} * {self.rope.partial} = {self.rotated}"
            )
        if self.k_eq_v and self.value_dim != self.head_dim:
            raise ValueError(
                "k_eq_v wants v_head_dim equal to head_dim, got "
                f"v_head_dim={self.value_dim}, head_dim={self.head_dim}"
            )
        reaches = {"window": self.window, "chunk": self.chunk, "block_sparse": self.block_sparse}
        if len(given := [name for name, value in reaches.items() if value is not None]) > 1:
            raise ValueError(f"a block has one of window, chunk, block_sparse, got {given}")
        if self.window is None and (self.dilation > 1 or self.global_tokens):
            raise ValueError(
                "dilation and global_tokens are of a window, got "
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
        return self.v_head_dim or self.head_dim

    @property
    def reach(self) -> int | None:
        """How far back a window goes: its own token is 1."""
        return self.window and (self.window - 1) * self.dilation + 1

    @property
    def rotated(self) -> int:
        """How many dimensions of a head carry the rotary position."""
        return self.rope.rotated(self.head_dim) if self.rope else 0

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def o_width(self) -> int:
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
        if self.kv_reuse or self.cross:  # another block's, or of the encoder's fixed length
            return Cache()
        sparse = self.block_sparse
        return Cache(
            kv_elements=self.kv_heads * (self.head_dim + self.value_dim),
            kv_scales=2 * self.kv_heads,
            window=self._held or self.chunk,
            index_elements=sparse.index_dim if sparse and sparse.index_heads else 0,
            selected=self._selected,
        )

    @property
    def _held(self) -> int | None:
        return self.reach and self.reach + self.global_tokens

    @property
    def _selected(self) -> int | None:
        """How many of the positions that are held a query reads at most."""
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
        if sparse := self.block_sparse:
            yield IndexScores(
                batch=point.batch,
                rows=point.tokens,
                keys=ceil(point.context / (1 if sparse.index_heads else sparse.block)),
                heads=sparse.index_heads or self.heads,
                head_dim=sparse.index_dim if sparse.index_heads else self.head_dim,
            )
        held = visible(point.context, self._held or self.chunk)
        if not point.decode:
            yield from self._prefill(point, kv, size)
        elif self.dilation > 1:
            yield from masked_attention(batch=point.batch, tokens=1, keys=held, **size)
        else:
            seen = visible(held, self._selected)
            yield AttentionDecode(batch=point.batch, context=seen, kv=kv, **size)
        if self.out_gate != "none":
            yield Rows(rows=point.rows, elements=3 * self.o_width)

    def _prefill(self, point: Point, kv: NumberFormat, size: dict[str, int]) -> Iterator[Operator]:
        """Texts are cut into chunks, or into `dilation` interleaved ones, that attend alone."""
        texts = ceil(point.tokens / self.chunk) if self.chunk else self.dilation
        tokens = ceil(point.tokens / texts)
        window = self._selected if self.block_sparse else self.window
        yield AttentionPrefill(
            batch=point.batch * texts,
            tokens=tokens,
            window=window if window and window < tokens else None,
            kv=kv,
            **size,
        )
        if self.global_tokens:
            first = min(self.global_tokens, point.tokens)
            yield from masked_attention(batch=point.batch, tokens=point.tokens, keys=first, **size)

    def proxy_fields(self, share: float, context_fraction: float) -> dict[str, Any]:
        head_dim = grained(self.head_dim * share)
        heads, kv_heads = grouped(self.heads, self.kv_heads, self.head_dim * share / head_dim)

        def nearer(length: int | None) -> int | None:
            return length and max(4, round(length * context_fraction))

        sparse = self.block_sparse
        return {
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "v_head_dim": self.v_head_dim and grained(self.v_head_dim * share),
            "window": nearer(self.window),
            "chunk": nearer(self.chunk),
            "block_sparse": sparse
            and sparse.model_dump()
            | {"block": nearer(sparse.block), "index_dim": grained(sparse.index_dim * share)},
            "temperature": self.temperature
            and self.temperature.model_dump() | {"floor": nearer(self.temperature.floor)},
        }
