"""Architectures: language models as frozen plain data.

d_model: 512
vocab_size: 32768
pattern: (G-G-G-*-)x3              # see pattern.py
blocks:
  "*": {kind: attn, heads: 8, kv_heads: 2, head_dim: 64}
  G: {kind: gdn, k_heads: 4, v_heads: 8, k_head_dim: 64, v_head_dim: 64}
  "-": {kind: ffn, width: 1536}
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from . import pattern as notation
from .blocks.attention import Attention
from .blocks.block import Block, PrecisionRole
from .blocks.kinds import AnyBlock
from .document import Document, Terse, validate
from .join import Join
from .operators import NumberFormat

ATTENTION_KINDS = frozenset({"attn", "mla", "compressed", "shared"})
Placement = Literal["pre", "post", "sandwich", "stream"]


class Norm(Terse):
    """The norms of the stack."""

    type: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with a bias."""
    placement: Placement = "pre"
    """Before each sub-block (`pre`), after it (`post`, OLMo 2), on both sides (`sandwich`, Gemma),
    or on the residual stream itself in front of it (`stream`, MiniMax-01)."""
    of_mixer: dict[str, Placement] = {}
    """Placement in the layers with a mixer of that symbol, their feed-forward included
    (Olmo-Hybrid)."""
    zero_centered: bool = False
    """Weights are stored as their difference from one."""
    eps: float = Field(default=1e-6, gt=0)
    """Number added to the variance."""


class Residual(Terse):
    """Constant factors of the residual connection: keep * x + add * f(x)."""

    keep: float = 1.0
    """Factor of the residual stream."""
    add: float = 1.0
    """Factor of the sub-block's output."""


class HyperConnections(Terse):
    """Manifold-constrained hyper-connections of DeepSeek-V4: several residual streams.

    Each sub-block reads and writes the streams by learned mixtures; the mixture between streams is
    doubly stochastic. Shapes: transformers, models/deepseek_v4.
    """

    streams: int = Field(ge=2)
    """Residual streams."""
    sinkhorn_iters: PositiveInt = 20
    """Sinkhorn steps that make the mixture doubly stochastic."""


class AttentionResiduals(Terse):
    """Sub-blocks attend over the outputs of earlier groups of layers (Kimi-K3)."""

    block: PositiveInt
    """Layers per group."""


class MTP(Terse):
    """Multi-token prediction modules after the stack (DeepSeek-V3, arXiv 2412.19437).

    A module norms the hidden state and the next token's embedding, projects both to d_model and
    runs `pattern`. It shares embedding table and head with the model.
    """

    depth: PositiveInt
    """Modules, each predicting one token further."""
    pattern: str
    """Pattern of each module."""


class Encoder(Terse):
    """The encoder that cross attention reads."""

    pattern: str
    """Pattern of the encoder."""
    vocab_size: PositiveInt | None = None
    """Size of an embedding table of its own; null: the model's table."""


class Precision(Terse):
    """The precision plan: which matrices are not in BF16.

    FP8 is e4m3. FP4 weights are e2m1 with a scale per 32 (`mxfp4`) or 16 (`nvfp4`). An `int8` or
    `fp8` cache has a scale per token and head.
    """

    fp8: tuple[PrecisionRole, ...] = ()
    """Roles in FP8."""
    fp4: tuple[PrecisionRole, ...] = ()
    """Roles whose weights are in FP4."""
    int8: tuple[Literal["kv_cache"], ...] = ()
    """Roles in INT8."""
    recipe: Literal["tensorwise", "rowwise", "blockwise"] = "rowwise"
    """What shares an FP8 scale: a tensor, a row, or a block (activations 1x128, weights
    128x128)."""
    fp4_scales: Literal["mxfp4", "nvfp4"] = "mxfp4"
    """Format of the FP4 scales."""
    keep_first_layers: NonNegativeInt = 0
    """First layers that stay in BF16."""
    keep_last_layers: NonNegativeInt = 0
    """Last layers that stay in BF16."""
    keep_before_attention: bool = False
    """Keep the mixers of the layers before an attention layer in BF16."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        roles = (*self.fp8, *self.fp4, *self.int8)
        if twice := [role for role in roles if roles.count(role) > 1]:
            raise ValueError(f"a role has one format, got {twice[0]} twice")
        if "kv_cache" in self.fp4:
            raise ValueError("kv_cache may be in fp8 or int8, got fp4")
        return self

    @cached_property
    def formats(self) -> dict[PrecisionRole, NumberFormat]:
        """The formats of the roles that are not in BF16."""
        listed: dict[NumberFormat, tuple[PrecisionRole, ...]] = {
            "fp8": self.fp8,
            "fp4": self.fp4,
            "int8": self.int8,
        }
        return {role: name for name, roles in listed.items() for role in roles}


@dataclass(frozen=True, kw_only=True)
class Body:
    """A block at its position: the sub-block, and the branch if that has several."""

    sub_block: int
    branch: int | None
    symbol: str
    block: Block


class Architecture(Terse):
    """A language model. `key` identifies it: the hash of its canonical form without the name.

    Blocks that the MTP modules or the encoder use are in `blocks` beside those of the decoder. A
    file may also give `n_layers`, by either count (layers, or sub-blocks as Nemotron-H counts): it
    is checked against the pattern and not kept.
    """

    name: str | None = None
    """Name, not part of the key."""
    d_model: PositiveInt
    """Width of the residual stream."""
    vocab_size: PositiveInt
    """Tokens of the vocabulary."""
    tied_embeddings: bool = False
    """The head uses the embedding table."""
    pattern: str
    """Sub-blocks in order, in the layer notation: one symbol each, `(GEGEGE*E)x12`."""
    norm: Norm = Norm()
    """Norms of the stack."""
    blocks: dict[str, AnyBlock]
    """Blocks by the symbols of the pattern."""
    joins: dict[str, Join] = {}
    """How the branches of parallel groups are joined, by group, `"[*|M]"`; by default summed."""
    precision: Precision = Precision()
    """Precision plan."""
    residual: Residual = Residual()
    """Constant factors of the residual connection."""
    hyper_connections: HyperConnections | None = None
    """Several residual streams."""
    attention_residuals: AttentionResiduals | None = None
    """Attention over the outputs of earlier layers."""
    mtp: MTP | None = None
    """Multi-token prediction modules."""
    encoder: Encoder | None = None
    """Encoder that cross attention reads."""
    embedding_scale: float | Literal["sqrt_d_model"] = 1.0
    """Factor of the embeddings."""
    embedding_norm: bool = False
    """Norm of the embeddings."""
    lm_head_bias: bool = False
    """Bias of the head; needs untied embeddings."""
    logit_scale: float = 1.0
    """Factor of the logits."""
    final_logit_softcap: float | None = Field(default=None, gt=0)
    """c in c * tanh(logits / c) of the final logits."""

    @model_validator(mode="before")
    @classmethod
    def _canonical_patterns(cls, data: Any) -> Any:
        return _without_n_layers(_with_canonical_patterns(data, inner=("mtp", "encoder")))

    @model_validator(mode="after")
    def _validate(self) -> Self:
        stacks = [self.symbols]
        stacks += [notation.unroll(part.pattern) for part in (self.mtp, self.encoder) if part]
        groups = dict.fromkeys(group for stack in stacks for group in stack)
        used = dict.fromkeys(symbol for group in groups for symbol in notation.branches(group))
        for symbol in used:
            self._check_symbol(symbol)
        if unused := [symbol for symbol in self.blocks if symbol not in used]:
            raise ValueError(
                f"every block must occur in the pattern, {self.pattern} has no {unused[0]!r}"
            )
        for group in groups:
            symbols = notation.branches(group)
            for field in ("depth_capacity", "token_merge"):
                having = [s for s in symbols if getattr(self.blocks[s], field) is not None]
                if having and len(symbols) > 1:
                    raise ValueError(
                        f"{field} must be of a whole sub-block, got it in {having[0]!r} of {group}"
                    )
        for group in self.joins:
            if group not in groups or len(notation.branches(group)) < 2:
                raise ValueError(
                    f"joins must name parallel groups of {self.pattern}, got {group!r}"
                )
        for symbol in self.norm.of_mixer:
            if symbol not in used:
                raise ValueError(
                    f"norm.of_mixer must name symbols of {self.pattern}, got {symbol!r}"
                )
        if self.encoder is None and any(_reads_encoder(self.blocks[s]) for s in used):
            raise ValueError("cross attention needs an encoder, got encoder=None")
        if self.lm_head_bias and self.tied_embeddings:
            raise ValueError("lm_head_bias needs an untied head, got tied_embeddings=True")
        return self

    def _check_symbol(self, symbol: str) -> None:
        if symbol not in self.blocks:
            raise ValueError(
                f"blocks must describe every symbol of {self.pattern}, got no {symbol!r}"
            )
        block = self.blocks[symbol]
        if block.letter != symbol[0]:
            raise ValueError(
                f"symbol {symbol!r} stands for {notation.SYMBOLS[symbol[0]]}, got a block of kind "
                f"{block.kind} that is {notation.SYMBOLS[block.letter]}, {block.letter!r}"
            )

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The residual sub-blocks in order; a parallel group is one entry."""
        return notation.unroll(self.pattern)

    @cached_property
    def bodies(self) -> tuple[Body, ...]:
        """Every block of the stack in order, the branches of a group one after the other."""
        return tuple(self._bodies(self.symbols))

    def bodies_of(self, pattern: str) -> tuple[Body, ...]:
        """The blocks of another stack of this model: of an MTP module or the encoder."""
        return tuple(self._bodies(notation.unroll(pattern)))

    def _bodies(self, groups: tuple[str, ...]) -> Iterator[Body]:
        for index, group in enumerate(groups):
            symbols = notation.branches(group)
            for branch, symbol in enumerate(symbols):
                yield Body(
                    sub_block=index,
                    branch=branch if len(symbols) > 1 else None,
                    symbol=symbol,
                    block=self.blocks[symbol],
                )

    @cached_property
    def _layers(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(layer) for layer in notation.units(self.symbols))

    @cached_property
    def _layer_of(self) -> tuple[int, ...]:
        return tuple(index for index, layer in enumerate(self._layers) for _ in layer)

    @property
    def num_layers(self) -> int:
        """Layers as most papers count them: a mixer with its feed-forward."""
        return self._layer_of[-1] + 1

    @cached_property
    def _before_attention(self) -> frozenset[int]:
        """The indices of layers before a layer with attention."""
        return frozenset(
            self._layer_of[body.sub_block] - 1
            for body in self.bodies
            if body.block.kind in ATTENTION_KINDS
        )

    def layer_of(self, index: int) -> int:
        """The layer of sub-block `index`."""
        return self._layer_of[index]

    def norm_placement(self, index: int) -> Placement:
        """The placement of the norms of sub-block `index`."""
        first = self._layers[self._layer_of[index]][0]
        return self.norm.of_mixer.get(first, self.norm.placement)

    def formats(self, index: int) -> dict[PrecisionRole, NumberFormat]:
        """The formats of the roles that are not in BF16 in sub-block `index`."""
        return self._formats[index]

    @cached_property
    def _formats(self) -> tuple[dict[PrecisionRole, NumberFormat], ...]:
        return tuple(self._formats_at(index) for index in range(len(self.symbols)))

    def _formats_at(self, index: int) -> dict[PrecisionRole, NumberFormat]:
        plan, layer = self.precision, self._layer_of[index]
        is_mixer = not notation.is_feed_forward(self.symbols[index])
        kept = (
            layer < plan.keep_first_layers
            or layer >= self.num_layers - plan.keep_last_layers
            or (plan.keep_before_attention and is_mixer and layer in self._before_attention)
        )
        return {} if kept else plan.formats

    @cached_property
    def key(self) -> str:
        """12 hex digits that identify the architecture, independent of its name and spelling."""
        canonical = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def changed(self, **fields: Any) -> Self:
        """A copy with other values in some fields, validated. Raises ValidationError."""
        known = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(known | fields)

    def plain(self) -> dict[str, Any]:
        """Plain data for messages, rows and YAML files, without defaults."""
        return self.model_dump(mode="json")


def _reads_encoder(block: Block) -> bool:
    return isinstance(block, Attention) and block.cross


def _with_canonical_patterns(data: Any, inner: tuple[str, ...] = ()) -> Any:
    """`data` with all patterns in their shortest spelling."""
    if not isinstance(data, dict):
        return data
    parts = {name: _with_canonical_patterns(data[name]) for name in inner if name in data}
    if isinstance(pattern := data.get("pattern"), str):
        parts["pattern"] = notation.compress(notation.unroll(pattern))
    return {**data, **parts}


def _without_n_layers(data: Any) -> Any:
    if (
        not isinstance(data, dict)
        or "n_layers" not in data
        or not isinstance(data.get("pattern"), str)
    ):
        return data
    groups = notation.unroll(data["pattern"])
    layers = len(notation.units(groups))
    if data["n_layers"] not in (layers, len(groups)):
        raise ValueError(
            f"n_layers must be that of the pattern, {layers} layers or {len(groups)} sub-blocks, "
            f"got n_layers={data['n_layers']!r}"
        )
    return {name: value for name, value in data.items() if name != "n_layers"}


def architecture_from(document: Document) -> Architecture:
    """Read an architecture from a document: the whole of it, or its `architecture` field.

    Raises InputError.
    """
    if "architecture" in document.data:
        return validate(Architecture, document, document.data["architecture"], ("architecture",))
    return validate(Architecture, document)


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML in the given order, small lists and records on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """A safe dumper without anchors, which the reader rejects."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
