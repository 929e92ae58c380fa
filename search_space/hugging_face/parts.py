"""The parts that a family's mapping is made of; each reads and writes the same facts.

A path of ours is `d_model`, `norm.eps` or, for blocks, the symbols that share the fact and its
field: `* W.heads`. A name of theirs may have other spellings behind it, `num_experts|n_experts`:
any is read, the first is written. Defaults are those of the family's class in transformers 5.24.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..architecture import Architecture
from ..blocks.block import Block
from ..document import InputError
from ..pattern import SYMBOLS
from .json_fields import Fields, first

Config = dict[str, Any]


class Draft:
    """An architecture in the making, as plain data."""

    def __init__(self) -> None:
        self.outer: dict[str, Any] = {}
        self.blocks: dict[str, dict[str, Any]] = {}
        self.symbols: tuple[str, ...] = ()

    def put(self, path: str, value: Any) -> None:
        """Set one field, in every block that the path names."""
        symbols, field = _split(path)
        holders = [self.blocks.setdefault(symbol, {}) for symbol in symbols] or [self.outer]
        *inner, last = field.split(".")
        for holder in holders:
            for name in inner:
                holder = holder.setdefault(name, {})
            holder[last] = value

    def get(self, path: str) -> Any:
        """One field, None where it was not set."""
        symbols, field = _split(path)
        value: Any = self.blocks.get(symbols[0]) if symbols else self.outer
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def look(architecture: Architecture, path: str) -> Any:
    """A field of the architecture by the same path; of blocks, that of the first it has."""
    symbols, field = _split(path)
    value: Any = first_block(architecture, symbols) if symbols else architecture
    for name in field.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    return value


def first_block(architecture: Architecture, symbols: tuple[str, ...]) -> Block | None:
    return next((b for s in symbols if (b := architecture.blocks.get(s)) is not None), None)


def _place(architecture: Architecture, path: str) -> str:
    """A path as complaints tell it."""
    symbols, field = _split(path)
    return next((f"blocks.{s}.{field}" for s in symbols if s in architecture.blocks), path)


def _split(path: str) -> tuple[tuple[str, ...], str]:
    head, _, field = path.partition(".")
    symbols = tuple(head.split())
    if field and all(s[0] in SYMBOLS and (s[1:].isdigit() or not s[1:]) for s in symbols):
        return symbols, field
    return (), path


class Part(Protocol):
    """A few facts of one family, in both directions."""

    def read(self, fields: Fields, draft: Draft, /) -> None: ...

    def write(self, architecture: Architecture, config: Config, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A part from two functions."""

    read: Callable[[Fields, Draft], None]
    write: Callable[[Architecture, Config], None]


Default = int | float | bool | None | Callable[[Draft], int]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One field that is ours and theirs alike, but for a conversion."""

    path: str
    names: tuple[str, ...]
    default: Default
    null: Callable[[Draft], int] | None
    least: int

    def read(self, fields: Fields, draft: Draft) -> None:
        default = self.default
        if self.null is not None and fields.is_null(self.names[0]):
            default = self.null
        if callable(default):
            default = self._derived(default, fields, draft)
        given = self._given(fields, default)
        value = default if given is None else given
        if value is None:
            raise fields.error(self.names[0], "required field is missing")
        draft.put(self.path, value)

    def _derived(self, rule: Callable[[Draft], int], fields: Fields, draft: Draft) -> int:
        value = rule(draft)
        if value < self.least:
            raise fields.error(self.names[0], f"follows from the other sizes as {value}")
        return value

    def _given(self, fields: Fields, default: Any) -> Any:
        if isinstance(default, bool):
            return fields.flag(*self.names)
        if isinstance(default, float):
            return fields.number(*self.names)
        return fields.integer(*self.names, least=self.least)

    def write(self, architecture: Architecture, config: Config) -> None:
        value = look(architecture, self.path)
        if value is not None:
            config[self.names[0]] = value


def fact(
    path: str,
    theirs: str,
    default: Default,
    *,
    null: Callable[[Draft], int] | None = None,
    least: int = 1,
) -> Fact:
    """`default` also says the type; without one the field is required.

    A null is like an absence, unless `null` says what it stands for.
    """
    return Fact(
        path=path,
        names=tuple(theirs.split("|")),
        default=default,
        null=null,
        least=least,
    )


def always(path: str, value: Any) -> Part:
    """What the family's class does without a field that says so."""
    return Pair(read=lambda _, draft: draft.put(path, value), write=lambda *_: None)


def kinds(**of: str) -> tuple[Part, ...]:
    """The kinds of the blocks: kinds(attn="* W", ffn="-")."""
    return tuple(_kind(kind, tuple(symbols.split())) for kind, symbols in of.items())


def _kind(kind: str, symbols: tuple[str, ...]) -> Part:
    def read(_: Fields, draft: Draft) -> None:
        draft.put(f"{' '.join(symbols)}.kind", kind)

    def write(architecture: Architecture, config: Config) -> None:
        for symbol in symbols:
            block = architecture.blocks.get(symbol)
            if block is not None and block.kind != kind:
                raise InputError(f"blocks.{symbol}.kind must be {kind!r}, got {block.kind!r}")

    return Pair(read=read, write=write)


def no_effect(*names: str) -> Part:
    """Fields that files carry although the family's class does not look at them."""
    return Pair(read=lambda fields, _: fields.pass_over(*names), write=lambda *_: None)


def only(**values: Any) -> Part:
    """Fields that may only say what the class does anyway; what else they say is not expressed."""

    def read(fields: Fields, _: Draft) -> None:
        for name, value in values.items():
            fields.expect(name, *(value if isinstance(value, tuple) else (value,)))

    return Pair(read=read, write=lambda *_: None)


def choice(path: str, theirs: str, default: str, names: Mapping[str, Any]) -> Part:
    """A fact that theirs says by a name."""
    spellings = tuple(theirs.split("|"))

    def read(fields: Fields, draft: Draft) -> None:
        draft.put(path, first(fields.choice(dict(names), *spellings), names[default]))

    def write(architecture: Architecture, config: Config) -> None:
        value = look(architecture, path)
        if value is None:
            return
        name = next((name for name, ours in names.items() if ours == value), None)
        if name is None:
            place = _place(architecture, path)
            raise InputError(f"{place}: {spellings[0]} has no name for {value!r}")
        config[spellings[0]] = name

    return Pair(read=read, write=write)


GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}
UNGATED = {"relu2": "relu2", "relu": "relu", "silu": "silu", "gelu": "gelu"}


def activation(symbols: str, theirs: str = "hidden_act", default: str = "silu") -> Part:
    """The activation of gated feed-forwards."""
    return choice(f"{symbols}.activation", theirs, default, GATED)


def outer(
    *,
    d_model: int,
    vocab_size: int,
    eps: float,
    eps_name: str = "rms_norm_eps",
    tied: bool = False,
    tied_name: str = "tie_word_embeddings",
) -> tuple[Part, ...]:
    """What stands around the stack."""
    return (
        fact("d_model", "hidden_size", d_model),
        fact("vocab_size", "vocab_size", vocab_size),
        fact("tied_embeddings", tied_name, tied),
        fact("norm.eps", eps_name, eps),
    )


def gqa(
    symbols: str, *, heads: int, kv_heads: int | None = None, head_dim: int | None = None
) -> tuple[Part, ...]:
    """Grouped attention: by default as many key heads as heads, together d_model wide."""
    some = symbols.split()[0]

    def all_heads(draft: Draft) -> int:
        return draft.get(f"{some}.heads")

    def share(draft: Draft) -> int:
        return draft.get("d_model") // draft.get(f"{some}.heads")

    return (
        *kinds(attn=symbols),
        fact(f"{symbols}.heads", "num_attention_heads", heads),
        fact(f"{symbols}.kv_heads", "num_key_value_heads", kv_heads or all_heads, null=all_heads),
        fact(f"{symbols}.head_dim", "head_dim|attention_head_dim", head_dim or share, null=share),
    )


def biases(symbols: str, default: bool = False) -> tuple[Part, ...]:
    """One switch for the biases of q, k, v and of the output."""
    return (
        fact(f"{symbols}.qkv_bias", "attention_bias", default),
        fact(f"{symbols}.o_bias", "attention_bias", default),
    )


def dense(width: int, *, symbols: str = "-", theirs: str = "intermediate_size") -> tuple[Part, ...]:
    """A dense feed-forward."""
    return (*kinds(ffn=symbols), fact(f"{symbols}.width", theirs, width))


def experts(
    *,
    n_experts: int,
    top_k: int | None,
    d_expert: int,
    n: str = "num_local_experts|num_experts",
    per_token: str = "num_experts_per_tok",
    width: str = "moe_intermediate_size",
    symbols: str = "E",
) -> tuple[Part, ...]:
    """Routed experts."""
    return (
        *kinds(moe=symbols),
        fact(f"{symbols}.n_experts", n, n_experts),
        fact(f"{symbols}.top_k", per_token, top_k),
        fact(f"{symbols}.d_expert", width, d_expert),
    )


def expert_groups(n: int, top: int, *, number: str = "n_group") -> Part:
    """Group-limited routing; one group is none."""
    names = tuple(number.split("|"))

    def read(fields: Fields, draft: Draft) -> None:
        groups, best = first(fields.integer(*names), n), first(fields.integer("topk_group"), top)
        if groups > 1:
            draft.put("E.groups", {"n": groups, "top": best})

    def write(architecture: Architecture, config: Config) -> None:
        if "E" in architecture.blocks:
            groups = look(architecture, "E.groups")
            config[names[0]] = groups.n if groups else 1
            config["topk_group"] = groups.top if groups else 1

    return Pair(read=read, write=write)


def shared_width(theirs: str, default: int, *, symbols: str = "E") -> Part:
    """Shared experts by the width of all of them together; zero is none."""

    def read(fields: Fields, draft: Draft) -> None:
        width = first(fields.integer(theirs, least=0), default)
        for symbol in symbols.split():
            number = draft.get(f"{symbol}.n_shared") or (1 if width else 0)
            draft.put(f"{symbol}.n_shared", number)
            if width and width != number * draft.get(f"{symbol}.d_expert"):
                draft.put(f"{symbol}.d_shared", width)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, tuple(symbols.split()))
        if block is not None:
            config[theirs] = block.shared_width

    return Pair(read=read, write=write)


def softmax_scale(
    symbols: str,
    theirs: str,
    default: float,
    *,
    decode: Callable[[float], float] = lambda scale: scale,
    encode: Callable[[float], float] = lambda scale: scale,
) -> Part:
    """The factor in front of q k^T; that of the head's width goes unsaid in our schema."""

    def read(fields: Fields, draft: Draft) -> None:
        given = first(fields.number(theirs), default)
        if given <= 0:
            raise fields.error(theirs, f"must be above zero, got {given}")
        scale = decode(given)
        for symbol in symbols.split():
            if scale != draft.get(f"{symbol}.head_dim") ** -0.5:
                draft.put(f"{symbol}.softmax_scale", scale)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, tuple(symbols.split()))
        if block is not None:
            config[theirs] = encode(block.softmax_scale or block.head_dim**-0.5)

    return Pair(read=read, write=write)


def mtp(theirs: str, pattern: str, default: int = 0) -> Part:
    """Modules that predict further tokens, each of one layer."""
    names = tuple(theirs.split("|"))

    def read(fields: Fields, draft: Draft) -> None:
        if depth := first(fields.integer(*names, least=0), default):
            draft.put("mtp", {"depth": depth, "pattern": pattern})

    def write(architecture: Architecture, config: Config) -> None:
        config[names[0]] = architecture.mtp.depth if architecture.mtp else 0

    return Pair(read=read, write=write)


def whole_heads(symbol: str) -> Part:
    """A law of some classes, whatever head_dim says."""

    def read(fields: Fields, draft: Draft) -> None:
        d_model, heads = draft.get("d_model"), draft.get(f"{symbol}.heads")
        if d_model % heads:
            raise fields.error(
                "hidden_size", f"must be a multiple of num_attention_heads={heads}, got {d_model}"
            )

    return Pair(read=read, write=lambda *_: None)


def cap(path: str, theirs: str, default: float | None) -> Part:
    """A soft cap; a null switches it off."""

    def read(fields: Fields, draft: Draft) -> None:
        given = fields.number(theirs)
        draft.put(path, default if given is None and not fields.is_null(theirs) else given)

    return Pair(
        read=read,
        write=lambda ours, config: config.update({theirs: look(ours, path)}),
    )
