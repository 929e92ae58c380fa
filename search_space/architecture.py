"""One language model as frozen plain data: the same record for a candidate, a preset and a file.

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
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from . import pattern as notation
from .blocks.attention import Attention
from .blocks.block import Block, Fp8Role
from .blocks.feed_forward import FeedForward
from .blocks.gated_deltanet import GatedDeltaNet
from .blocks.mamba2 import Mamba2
from .blocks.mla import Mla
from .blocks.moe import Moe
from .document import Document, Record, validate


def _kind(block: Any) -> str:
    kind = block.get("kind") if isinstance(block, dict) else getattr(block, "kind", None)
    return f"{kind}!"  # the '!' marks it as a tag, see document.py


AnyBlock = Annotated[
    Annotated[Attention, Tag("attn!")]
    | Annotated[Mla, Tag("mla!")]
    | Annotated[Mamba2, Tag("mamba2!")]
    | Annotated[GatedDeltaNet, Tag("gdn!")]
    | Annotated[FeedForward, Tag("ffn!")]
    | Annotated[Moe, Tag("moe!")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="unknown kind",
        custom_error_context={"expected": "attn, mla, mamba2, gdn, ffn, moe"},
    ),
]

BLOCKS: dict[str, type[Block]] = {
    "attn": Attention,
    "mla": Mla,
    "mamba2": Mamba2,
    "gdn": GatedDeltaNet,
    "ffn": FeedForward,
    "moe": Moe,
}
# Which kind a symbol of the notation stands for.
KIND_OF_SYMBOL = {
    "*": "attn",
    "W": "attn",
    "L": "mla",
    "M": "mamba2",
    "G": "gdn",
    "-": "ffn",
    "E": "moe",
}
ATTENTION_KINDS = frozenset({"attn", "mla"})


class Norm(Record):
    """RMSNorm around each sub-block: before it, after it, or both (`sandwich`)."""

    placement: Literal["pre", "post", "sandwich"] = "pre"
    eps: float = Field(default=1e-6, gt=0)


class Precision(Record):
    """Which matrices run in FP8 (e4m3); all others, and every kept layer, stay in BF16.

    `recipe` says what shares a scale: a tensor, a row, or a block (activations 1x128, weights
    128x128). The first and last layers and the mixers that feed attention are the sensitive ones.
    """

    fp8: tuple[Fp8Role, ...] = ()
    recipe: Literal["tensorwise", "rowwise", "blockwise"] = "rowwise"
    keep_first_layers: NonNegativeInt = 0
    keep_last_layers: NonNegativeInt = 0
    keep_before_attention: bool = False


class Architecture(Record):
    """A decoder language model. `key` identifies it: the hash of its canonical form, name aside."""

    name: str | None = None
    d_model: PositiveInt
    vocab_size: PositiveInt
    tied_embeddings: bool = False
    pattern: str
    norm: Norm = Norm()
    blocks: dict[str, AnyBlock]
    precision: Precision = Precision()

    @model_validator(mode="before")
    @classmethod
    def _canonical_pattern(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("pattern"), str):
            return {**data, "pattern": notation.compress(notation.unroll(data["pattern"]))}
        return data

    @model_validator(mode="after")
    def _laws(self) -> Self:
        used = dict.fromkeys(self.symbols)
        for symbol in used:
            self._check_symbol(symbol)
        if unused := [symbol for symbol in self.blocks if symbol not in used]:
            raise ValueError(
                f"every block must occur in the pattern, {self.pattern} has no {unused[0]!r}"
            )
        return self

    def _check_symbol(self, symbol: str) -> None:
        kind = KIND_OF_SYMBOL.get(symbol[0])
        if kind is None:
            what = notation.SYMBOLS.get(symbol[0], "parallel branches")
            raise ValueError(f"pattern {self.pattern}: {what} ({symbol}) cannot be built yet")
        if symbol not in self.blocks:
            raise ValueError(
                f"pattern {self.pattern} has {symbol!r}, but blocks does not describe it"
            )
        block = self.blocks[symbol]
        if block.kind != kind:
            raise ValueError(f"symbol {symbol!r} stands for kind {kind}, got kind {block.kind}")
        if isinstance(block, Attention) and (block.window is not None) != (symbol[0] == "W"):
            law = (
                "W must have a window"
                if symbol[0] == "W"
                else "* is global and has no window, use W"
            )
            raise ValueError(f"symbol {law}, got window={block.window}")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The residual sub-blocks in order."""
        return notation.unroll(self.pattern)

    @property
    def sub_blocks(self) -> tuple[tuple[str, AnyBlock], ...]:
        """Each residual sub-block in order: its symbol and its record."""
        return tuple((symbol, self.blocks[symbol]) for symbol in self.symbols)

    @cached_property
    def _layer_of(self) -> tuple[int, ...]:
        layers = notation.units(self.symbols)
        return tuple(index for index, layer in enumerate(layers) for _ in layer)

    @property
    def num_layers(self) -> int:
        """Layers as most papers count them: a mixer together with its feed-forward."""
        return self._layer_of[-1] + 1

    @cached_property
    def _before_attention(self) -> frozenset[int]:
        """The layers whose next layer has an attention mixer."""
        return frozenset(
            layer - 1
            for layer, symbol in zip(self._layer_of, self.symbols, strict=True)
            if self.blocks[symbol].kind in ATTENTION_KINDS
        )

    def fp8_roles(self, index: int) -> frozenset[Fp8Role]:
        """The roles that run in FP8 in sub-block `index`."""
        plan, layer = self.precision, self._layer_of[index]
        is_mixer = self.symbols[index][0] not in notation.FEED_FORWARD
        kept = (
            layer < plan.keep_first_layers
            or layer >= self.num_layers - plan.keep_last_layers
            or (plan.keep_before_attention and is_mixer and layer in self._before_attention)
        )
        return frozenset() if kept else frozenset(plan.fp8)

    @cached_property
    def key(self) -> str:
        """12 hex digits that name this architecture, whatever it is called and however written."""
        canonical = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def plain(self) -> dict[str, Any]:
        """As plain data: what a message, a row or a YAML file carries. A null says something here."""
        return self.model_dump(mode="json", exclude={"name"} if self.name is None else None)


def architecture_from(document: Document) -> Architecture:
    """Read an architecture from a document: the whole of it, or its `architecture` field.

    Raises InputError.
    """
    if "architecture" in document.data:
        return validate(Architecture, document, document.data["architecture"], ("architecture",))
    return validate(Architecture, document)


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML in the order given, small lists and block records on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """Safe, and never writes an anchor: the reader refuses them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
