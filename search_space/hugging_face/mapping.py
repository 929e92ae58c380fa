"""Mappings between fields of config.json and fields of an architecture, in both directions.

A path names a field of an architecture: `d_model`, `norm.eps`, or for blocks the symbols that share
the field, then its name: `* W.heads` is `heads` of the blocks `*` and `W`.

A config name may have alternative spellings after it, `num_experts|n_experts`: any of them is read,
the first is written. A name with a dot is a field of a nested object: `compress_rates.csa`.

Defaults are those of the family's class in transformers 5.24.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..architecture import Architecture
from ..blocks.block import Block
from ..document import InputError
from ..pattern import SYMBOLS
from .json_fields import Fields, coalesce

Config = dict[str, Any]


class ArchitectureDraft:
    """The plain data of an architecture, filled field by field while a config.json is read.

    `top_level` has the fields outside the blocks, `blocks` those of each block by its symbol,
    `symbols` the stack in order.
    """

    def __init__(self) -> None:
        self.top_level: dict[str, Any] = {}
        self.blocks: dict[str, dict[str, Any]] = {}
        self.symbols: tuple[str, ...] = ()

    def set(self, path: str, value: Any) -> None:
        """Set a field, in every block that the path names."""
        symbols, name = _split(path)
        holders = [self.blocks.setdefault(symbol, {}) for symbol in symbols] or [self.top_level]
        *inner, last = name.split(".")
        for holder in holders:
            for key in inner:
                holder = holder.setdefault(key, {})
            holder[last] = value

    def get(self, path: str) -> Any:
        """A field, of the first block that the path names; None where it was not set."""
        symbols, name = _split(path)
        value: Any = self.blocks.get(symbols[0]) if symbols else self.top_level
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def get_field(architecture: Architecture, path: str) -> Any:
    """A field of an architecture, of the first block on the path that it has, else None."""
    symbols, name = _split(path)
    value: Any = first_block(architecture, symbols) if symbols else architecture
    for key in name.split("."):
        if value is None:
            return None
        value = getattr(value, key)
    return value


def set_config(config: Config, name: str, value: Any) -> None:
    """Set a field of a config, with a dot in its name one of a nested object."""
    *sections, last = name.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[last] = value


def first_block(architecture: Architecture, symbols: tuple[str, ...]) -> Block | None:
    """The block of the first of these symbols that the architecture has, else None."""
    return next((b for s in symbols if (b := architecture.blocks.get(s)) is not None), None)


def _split(path: str) -> tuple[tuple[str, ...], str]:
    """The symbols of a path, none for a field outside the blocks, and the name of the field."""
    head, _, name = path.partition(".")
    symbols = tuple(head.split())
    if name and all(s[0] in SYMBOLS and (s[1:].isdigit() or not s[1:]) for s in symbols):
        return symbols, name
    return (), path


class FieldMapping(Protocol):
    """A mapping of one or a few related fields.

    `read` reads fields of the file and sets those of the draft; it raises InputError for a value
    that is not allowed. `write` adds fields to the config; it raises InputError for an architecture
    that the fields cannot express. Mappings of a family run in order: one may use what an earlier
    one has set.
    """

    def read(self, fields: Fields, draft: ArchitectureDraft, /) -> None: ...

    def write(self, architecture: Architecture, config: Config, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CustomMapping:
    """A mapping given by its two functions."""

    read: Callable[[Fields, ArchitectureDraft], None]
    write: Callable[[Architecture, Config], None]


def read_only(read: Callable[[Fields, ArchitectureDraft], None]) -> FieldMapping:
    """A mapping that writes nothing."""
    return CustomMapping(read=read, write=lambda *_: None)


Default = int | float | bool | None | Callable[[ArchitectureDraft], int]


def field(
    path: str, name: str, default: Default, *, null: Default = None, least: int = 1
) -> FieldMapping:
    """A field with the same value in config.json and in the architecture.

    An absent field is `default`, which also gives the type; a function computes it from the fields
    that are set already, and None makes the field required. A null is `null`, else the default.
    `least` is the smallest integer allowed. Nothing is written for blocks that do not occur.
    """
    names = tuple(name.split("|"))

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        fallback = null if null is not None and fields.is_null(names[0]) else default
        if callable(fallback):
            fallback = fallback(draft)
            if fallback < least:
                raise fields.error(
                    names[0], f"its default must be at least {least}, got {fallback}"
                )
        if isinstance(fallback, bool):
            given = fields.flag(*names)
        elif isinstance(fallback, float):
            given = fields.number(*names)
        else:
            given = fields.integer(*names, least=least)
        value = fallback if given is None else given
        if value is None:
            raise fields.error(names[0], "required field is missing")
        draft.set(path, value)

    def write(architecture: Architecture, config: Config) -> None:
        value = get_field(architecture, path)
        if value is not None:
            set_config(config, names[0], value)

    return CustomMapping(read=read, write=write)


def nullable(path: str, name: str, default: float | None, *, integer: bool = False) -> FieldMapping:
    """A number, or with `integer` a size, for which null means None rather than the default.

    None is written as null. Nothing is written for blocks that do not occur.
    """
    symbols, _ = _split(path)

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        value = fields.integer(name) if integer else fields.number(name)
        draft.set(path, default if value is None and not fields.is_null(name) else value)

    def write(architecture: Architecture, config: Config) -> None:
        if not symbols or first_block(architecture, symbols) is not None:
            set_config(config, name, get_field(architecture, path))

    return CustomMapping(read=read, write=write)


def choice(path: str, name: str, default: str, options: Mapping[str, Any]) -> FieldMapping:
    """A string of config.json that stands for a value of ours; `default` is one of the strings."""
    names = tuple(name.split("|"))

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        draft.set(path, coalesce(fields.choice(dict(options), *names), options[default]))

    def write(architecture: Architecture, config: Config) -> None:
        value = get_field(architecture, path)
        if value is None:
            return
        text = next((text for text, ours in options.items() if ours == value), None)
        if text is None:
            raise InputError(
                f"{_field_name(architecture, path)}: {names[0]} has no name for {value!r}"
            )
        set_config(config, names[0], text)

    return CustomMapping(read=read, write=write)


def _field_name(architecture: Architecture, path: str) -> str:
    """A path as messages show it, `blocks.*.heads`."""
    symbols, name = _split(path)
    return next((f"blocks.{s}.{name}" for s in symbols if s in architecture.blocks), path)


def constant(path: str, value: Any) -> FieldMapping:
    """A value that the family's class always has and that no field of config.json holds."""
    return read_only(lambda _, draft: draft.set(path, value))


def derived(
    path: str, rule: Callable[[ArchitectureDraft], int], name: str | None = None
) -> FieldMapping:
    """A size that the family's class computes from other fields.

    Files may repeat it as the field `name`, which is expected to have that value.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        value = rule(draft)
        draft.set(path, value)
        if name is not None:
            fields.expect(name, value)

    return read_only(read)


def block_kinds(**symbols_of: str) -> tuple[FieldMapping, ...]:
    """The kind of each block: block_kinds(attn="* W", ffn="-").

    Writing raises InputError for a block of another kind under the same symbol.
    """
    return tuple(_block_kind(kind, tuple(symbols.split())) for kind, symbols in symbols_of.items())


def _block_kind(kind: str, symbols: tuple[str, ...]) -> FieldMapping:
    def read(_: Fields, draft: ArchitectureDraft) -> None:
        draft.set(f"{' '.join(symbols)}.kind", kind)

    def write(architecture: Architecture, config: Config) -> None:
        for symbol in symbols:
            block = architecture.blocks.get(symbol)
            if block is not None and block.kind != kind:
                raise InputError(f"blocks.{symbol}.kind must be {kind!r}, got {block.kind!r}")

    return CustomMapping(read=read, write=write)


def ignored(*names: str) -> FieldMapping:
    """Fields that occur in files and that the family's class does not use."""
    return read_only(lambda fields, _: fields.ignore(*names))


def expected(**values: Any) -> FieldMapping:
    """Fields that have no place in our schema, with the value that means what we build.

    A tuple holds several such values. A file with another value reads, and reports the field in
    `Imported.not_expressed`.
    """

    def read(fields: Fields, _: ArchitectureDraft) -> None:
        for name, value in values.items():
            fields.expect(name, *(value if isinstance(value, tuple) else (value,)))

    return read_only(read)
