"""Mappings of the stack: which block each layer has, in the ways that config files list them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..document import InputError, nearest
from ..pattern import units
from .json_fields import Fields, coalesce
from .mapping import ArchitectureDraft, Config, CustomMapping, FieldMapping, get_field

MAX_LAYERS = 256
_OLD_NAMES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
}

# Names of `layer_types` and `mlp_layer_types` in several families, with our symbols.
ATTENTION = {"full_attention": "*", "sliding_attention": "W"}
DENSE_OR_SPARSE = {"dense": "-", "sparse": "E"}

# The symbols of so many layers, by the fields of a file.
LayerRule = Callable[[Fields, int], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class LayerBlocks:
    """One block per layer, all mixers or all feed-forwards.

    `read(fields, num_layers)` gives the symbol of each layer, `write(symbols)` the fields. Both
    raise InputError for what the other side has no name for.
    """

    read: Callable[[Fields, int], list[str]]
    write: Callable[[list[str]], Config]


def every_layer(symbol: str) -> LayerBlocks:
    """The same block in every layer, without a field."""
    return LayerBlocks(read=lambda _, number: [symbol] * number, write=lambda _: {})


def layer_types(name: str, symbols_of: Mapping[str, str], default: LayerRule) -> LayerBlocks:
    """A list with one name per layer; `default` gives the symbols where the list is absent.

    Reading raises InputError for an unknown name and for a list of another length.
    """
    names = tuple(name.split("|"))

    def read(fields: Fields, number: int) -> list[str]:
        given = fields.texts(*names)
        if given is None:
            return list(default(fields, number))
        check_length(fields, names[0], given, number)
        symbols = []
        for layer_type in given:
            current = (
                layer_type if layer_type in symbols_of else _OLD_NAMES.get(layer_type, layer_type)
            )
            if current not in symbols_of:
                raise fields.error(
                    names[0], f"unknown layer type {layer_type!r}{nearest(layer_type, symbols_of)}"
                )
            symbols.append(symbols_of[current])
        return symbols

    def write(symbols: list[str]) -> Config:
        types = {symbol: layer_type for layer_type, symbol in symbols_of.items()}
        if odd := next((symbol for symbol in symbols if symbol not in types), None):
            raise InputError(f"pattern: {names[0]} has no name for {odd!r}{nearest(odd, types)}")
        return {names[0]: [types[symbol] for symbol in symbols]}

    return LayerBlocks(read=read, write=write)


def every_nth(symbols: tuple[str, str], default: int, *names: str) -> LayerRule:
    """The second symbol in every n-th layer, the first in the others; `names` may give n."""

    def rule(fields: Fields, number: int) -> Iterable[str]:
        step = coalesce(fields.integer(*names) if names else None, default)
        return [symbols[(i + 1) % step == 0] for i in range(number)]

    return rule


def zeros_and_ones(name: str, symbols: tuple[str, str], default: LayerRule) -> LayerRule:
    """A list of zeros and ones, one per layer, for the first and the second symbol.

    `default` holds where it is absent. Raises InputError for a list of another length.
    """

    def rule(fields: Fields, number: int) -> Iterable[str]:
        given = fields.integers(name)
        if given is None:
            return default(fields, number)
        check_length(fields, name, given, number)
        return [symbols[mark != 0] for mark in given]

    return rule


def leading_dense(name: str, default: int) -> LayerBlocks:
    """Dense feed-forwards in the first layers, as many as the field says, experts after them.

    The list `mlp_layer_types` takes precedence, and is written where the order is another.
    """

    def leading(fields: Fields, number: int) -> list[str]:
        dense = min(number, coalesce(fields.integer(name, least=0), default))
        return ["-"] * dense + ["E"] * (number - dense)

    listed = layer_types("mlp_layer_types", DENSE_OR_SPARSE, leading)

    def read(fields: Fields, number: int) -> list[str]:
        fields.ignore(name)
        return listed.read(fields, number)

    def write(symbols: list[str]) -> Config:
        dense = next((i for i, symbol in enumerate(symbols) if symbol != "-"), len(symbols))
        if symbols == ["-"] * dense + ["E"] * (len(symbols) - dense):
            return {name: dense}
        return listed.write(symbols)

    return LayerBlocks(read=read, write=write)


def sparse_steps(step_name: str, dense_name: str) -> LayerBlocks:
    """Experts in every n-th layer, except in the layers of a list, which are dense (Qwen)."""

    def read(fields: Fields, number: int) -> list[str]:
        step = fields.integer(step_name) or 1
        dense = set(fields.integers(dense_name) or ())
        return ["-" if i in dense or (i + 1) % step else "E" for i in range(number)]

    def write(symbols: list[str]) -> Config:
        return {step_name: 1, dense_name: [i for i, symbol in enumerate(symbols) if symbol == "-"]}

    return LayerBlocks(read=read, write=write)


def periodic(
    period_name: str, offset_name: str, defaults: tuple[int, int], symbols: tuple[str, str]
) -> LayerBlocks:
    """The second symbol in every n-th layer from an offset on, the first in the others (Jamba).

    `defaults` are n and the offset, which must be below n, else InputError.
    """

    def read(fields: Fields, number: int) -> list[str]:
        period = coalesce(fields.integer(period_name), defaults[0])
        offset = coalesce(fields.integer(offset_name, least=0), defaults[1])
        if offset >= period:
            raise fields.error(offset_name, f"must be below {period_name}={period}, got {offset}")
        return [symbols[i % period == offset] for i in range(number)]

    def write(layers: list[str]) -> Config:
        at = [i for i, symbol in enumerate(layers) if symbol == symbols[1]]
        if not at:
            return {period_name: len(layers) + 1, offset_name: len(layers)}
        return {
            period_name: at[1] - at[0] if len(at) > 1 else max(len(layers), at[0] + 1),
            offset_name: at[0],
        }

    return LayerBlocks(read=read, write=write)


def windowed_or_full(default: int | None, switch: str | None = None) -> LayerBlocks:
    """Attention with the window `sliding_window` in every layer, or full attention in every layer.

    Full where the window is null, or where the field `switch` is not true. Goes with shared_window.
    """
    return LayerBlocks(
        read=lambda fields, number: ["W" if _window(fields, default, switch) else "*"] * number,
        write=lambda _: {},
    )


def shared_window(default: int | None, switch: str | None = None) -> FieldMapping:
    """The window of windowed_or_full, with the same arguments."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        draft.set("W.window", _window(fields, default, switch))

    def write(architecture: Architecture, config: Config) -> None:
        config["sliding_window"] = get_field(architecture, "W.window")
        if switch is not None:
            config[switch] = "W" in architecture.blocks

    return CustomMapping(read=read, write=write)


def _window(fields: Fields, default: int | None, switch: str | None) -> int | None:
    given = fields.integer("sliding_window")
    off = switch is not None and not fields.flag(switch)
    return None if off or fields.is_null("sliding_window") else given or default


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The mapping that `layers` returns."""

    default: int
    mixers: LayerBlocks
    feed_forwards: LayerBlocks | None

    def read(self, fields: Fields, draft: ArchitectureDraft) -> None:
        number = num_layers(fields, "num_hidden_layers", self.default)
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
                f"pattern: each layer must be a mixer and a feed-forward, got {''.join(odd)!r}"
            )
        mixers, rest = ([pair[place] for pair in pairs] for place in (0, 1))
        config["num_hidden_layers"] = len(pairs)
        config |= self.mixers.write(mixers) | self.feed_forwards.write(rest)


def layers(
    default: int, mixers: LayerBlocks, feed_forwards: LayerBlocks | None = None
) -> FieldMapping:
    """The stack: in each layer a mixer, and a feed-forward after it where the family has them.

    `default` is the number of layers where the file does not give it. Writing raises InputError for
    another order of blocks.
    """
    return Layers(default=default, mixers=mixers, feed_forwards=feed_forwards)


def num_layers(fields: Fields, name: str, default: int) -> int:
    """A number of layers; raises InputError above MAX_LAYERS."""
    number = coalesce(fields.integer(name), default)
    if number > MAX_LAYERS:
        raise fields.error(name, f"must be at most {MAX_LAYERS}, got {number}")
    return number


def check_length(fields: Fields, name: str, given: Sequence[Any], number: int) -> None:
    """Raise InputError unless a list has one entry per layer."""
    if len(given) != number:
        raise fields.error(
            name, f"must have one entry per layer, num_hidden_layers={number}, got {len(given)}"
        )
