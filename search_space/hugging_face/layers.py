"""Which block stands in which layer, and the many ways in which files say so."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..document import InputError, nearest
from ..pattern import units
from .json_fields import Fields, first
from .parts import Config, Draft, Pair, Part, look

MAX_LAYERS = 256
_LEGACY = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
}

ATTENTION = {"full_attention": "*", "sliding_attention": "W"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """What stands in one place of every layer: its mixer, or its feed-forward."""

    read: Callable[[Fields, int], list[str]]
    write: Callable[[list[str]], Config]


def every(symbol: str) -> Column:
    """The same in each layer; no field says so."""
    return Column(read=lambda _, number: [symbol] * number, write=lambda _: {})


def named(
    theirs: str, names: Mapping[str, str], absent: Callable[[Fields, int], Iterable[str]]
) -> Column:
    """A list of names, one a layer; `absent` gives the symbols where a file has no list."""
    spellings = tuple(theirs.split("|"))

    def read(fields: Fields, number: int) -> list[str]:
        given = fields.texts(*spellings)
        if given is None:
            return list(absent(fields, number))
        _check_length(fields, spellings[0], given, number)
        symbols = []
        for name in given:
            current = name if name in names else _LEGACY.get(name, name)
            if current not in names:
                raise fields.error(spellings[0], f"unknown kind {name!r}{nearest(name, names)}")
            symbols.append(names[current])
        return symbols

    def write(symbols: list[str]) -> Config:
        back = {symbol: name for name, symbol in names.items()}
        return {spellings[0]: [_name_of(symbol, back, spellings[0]) for symbol in symbols]}

    return Column(read=read, write=write)


def dense_first(theirs: str, default: int, *, other: str = "mlp_layer_types") -> Column:
    """So many dense feed-forwards, experts after them; or a list of which is which."""
    kinds = {"dense": "-", "sparse": "E"}

    def leading(fields: Fields, number: int) -> list[str]:
        dense = min(number, first(fields.integer(theirs, least=0), default))
        return ["-"] * dense + ["E"] * (number - dense)

    listed = named(other, kinds, leading)

    def write(symbols: list[str]) -> Config:
        dense = next((i for i, symbol in enumerate(symbols) if symbol != "-"), len(symbols))
        if symbols == ["-"] * dense + ["E"] * (len(symbols) - dense):
            return {theirs: dense}
        return listed.write(symbols)

    def read(fields: Fields, number: int) -> list[str]:
        fields.pass_over(theirs)
        return listed.read(fields, number)

    return Column(read=read, write=write)


def only_dense(interval: str, listed: str) -> Column:
    """Experts in each `interval`-th layer, but for the layers of a list (Qwen)."""

    def read(fields: Fields, number: int) -> list[str]:
        step = fields.integer(interval) or 1
        dense = set(fields.integers(listed) or ())
        return ["-" if i in dense or (i + 1) % step else "E" for i in range(number)]

    def write(symbols: list[str]) -> Config:
        return {interval: 1, listed: [i for i, symbol in enumerate(symbols) if symbol == "-"]}

    return Column(read=read, write=write)


def periodic(period: str, offset: str, defaults: tuple[int, int], pair: tuple[str, str]) -> Column:
    """The second of a pair in each `period`-th layer from `offset` on, else the first (Jamba)."""

    def read(fields: Fields, number: int) -> list[str]:
        step = first(fields.integer(period), defaults[0])
        start = first(fields.integer(offset, least=0), defaults[1])
        if start >= step:
            raise fields.error(offset, f"must be below {period}={step}, got {start}")
        return [pair[i % step == start] for i in range(number)]

    def write(symbols: list[str]) -> Config:
        at = [i for i, symbol in enumerate(symbols) if symbol == pair[1]]
        if not at:
            return {period: len(symbols) + 1, offset: len(symbols)}
        return {
            period: at[1] - at[0] if len(at) > 1 else max(len(symbols), at[0] + 1),
            offset: at[0],
        }

    return Column(read=read, write=write)


def marked(theirs: str, pair: tuple[str, str]) -> Callable[[Fields, int], list[str] | None]:
    """A list of zeros and ones, one a layer, for the first and the second of a pair."""

    def read(fields: Fields, number: int) -> list[str] | None:
        given = fields.integers(theirs)
        if given is None:
            return None
        _check_length(fields, theirs, given, number)
        return [pair[mark != 0] for mark in given]

    return read


def one_in(
    symbols: tuple[str, str], default: int, *names: str
) -> Callable[[Fields, int], Iterable[str]]:
    """The second of a pair in each so-many-th layer, the first in the others."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        step = first(fields.integer(*names) if names else None, default)
        return [symbols[(i + 1) % step == 0] for i in range(number)]

    return absent


def window_everywhere(default: int | None, switch: str | None = None) -> tuple[Column, Part]:
    """All layers look back as far as `sliding_window` says, or without end where it is null.

    With `switch` they do so only where that field is true.
    """

    def window(fields: Fields) -> int | None:
        given = fields.integer("sliding_window")
        off = switch is not None and not fields.flag(switch)
        return None if off or fields.is_null("sliding_window") else given or default

    def write(architecture: Architecture, config: Config) -> None:
        config["sliding_window"] = look(architecture, "W.window")
        if switch is not None:
            config[switch] = "W" in architecture.blocks

    column = Column(
        read=lambda fields, number: ["W" if window(fields) else "*"] * number,
        write=lambda _: {},
    )
    part = Pair(
        read=lambda fields, draft: draft.put("W.window", window(fields)),
        write=write,
    )
    return column, part


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The stack: in each layer a mixer, then a feed-forward where the family has any."""

    default: int
    mixers: Column
    feed_forwards: Column | None

    def read(self, fields: Fields, draft: Draft) -> None:
        number = fields.integer("num_hidden_layers") or self.default
        if number > MAX_LAYERS:
            raise fields.error("num_hidden_layers", f"may be at most {MAX_LAYERS}, got {number}")
        mixers = self.mixers.read(fields, number)
        if self.feed_forwards is None:
            draft.symbols = tuple(mixers)
        else:
            rest = self.feed_forwards.read(fields, number)
            draft.symbols = tuple(s for pair in zip(mixers, rest, strict=True) for s in pair)

    def write(self, architecture: Architecture, config: Config) -> None:
        if self.feed_forwards is None:
            symbols = list(architecture.symbols)
            config["num_hidden_layers"] = len(symbols)
            config |= self.mixers.write(symbols)
            return
        pairs = units(architecture.symbols)
        if odd := next((pair for pair in pairs if len(pair) != 2), None):
            raise InputError(
                f"pattern: every layer has a mixer and a feed-forward, got {''.join(odd)!r} alone"
            )
        mixers, rest = ([pair[place] for pair in pairs] for place in (0, 1))
        config["num_hidden_layers"] = len(pairs)
        config |= self.mixers.write(mixers) | self.feed_forwards.write(rest)


def layers(default: int, mixers: Column, feed_forwards: Column | None = None) -> Layers:
    """The stack of a family; `default` layers where a file does not say how many."""
    return Layers(default=default, mixers=mixers, feed_forwards=feed_forwards)


def _check_length(fields: Fields, name: str, given: Sequence[Any], number: int) -> None:
    if len(given) != number:
        raise fields.error(
            name, f"must have one entry for each of num_hidden_layers={number}, got {len(given)}"
        )


def _name_of(symbol: str, names: Mapping[str, str], field: str) -> str:
    if symbol not in names:
        raise InputError(f"pattern: {field} has no name for {symbol!r}{nearest(symbol, names)}")
    return names[symbol]
