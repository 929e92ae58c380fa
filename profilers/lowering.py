"""The operator calls of one forward pass of an architecture, counted by layer group."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ..search_space.accounting import Uncountable, around_weights
from ..search_space.architecture import Architecture
from ..search_space.blocks.block import Weight
from ..search_space.operators import Gemm, NumberFormat, Operator, Point, Rows

Calls = Counter[Operator]
# The layer group of the embedding, the last norm and the head.
EMBEDDING_AND_HEAD: Final = "embedding_and_head"


def calls(architecture: Architecture, point: Point) -> Calls:
    """Every operator call of a forward pass; the head is applied to the last token of a sequence.

    Raises Uncountable for an encoder-decoder.
    """
    return joined(layer_calls(architecture, point))


def joined(calls_by_group: Mapping[str, Calls]) -> Calls:
    """The calls of all layer groups together."""
    found = Calls()
    for group_calls in calls_by_group.values():
        found.update(group_calls)
    return found


def layer_calls(architecture: Architecture, point: Point) -> dict[str, Calls]:
    """The calls of a forward pass by layer group, with `EMBEDDING_AND_HEAD` as the last one.

    A layer group is all sub-blocks of one symbol of the pattern ("*", or "[*M]" with its
    brackets). Raises Uncountable for an encoder-decoder.
    """
    if architecture.encoder:
        raise Uncountable("the cost of an encoder-decoder is not estimated")
    d_model = architecture.d_model
    found = {group: Calls() for group in dict.fromkeys(architecture.symbols)}
    for (group, placement, formats), times in _counted(
        (group, architecture.norm_placement(index), architecture.formats(index))
        for index, group in enumerate(architecture.symbols)
    ):
        around = around_weights(architecture, group, placement)
        _add(found[group], _gemms(around, point.rows, formats), times)
        _add(found[group], (_residual(architecture, point),), times * max(1, _norms(around)))
    for (group, symbol, formats), times in _counted(
        (architecture.symbols[body.sub_block], body.symbol, architecture.formats(body.sub_block))
        for body in architecture.bodies
    ):
        block = architecture.blocks[symbol]
        block_point = _reduced(point, block.token_fraction)
        kv, experts = formats.get("kv_cache", "bf16"), formats.get("experts", "bf16")
        _add(found[group], _gemms(block.weights(d_model), block_point.rows, formats), times)
        _add(found[group], block.operators(d_model, block_point, kv=kv, experts=experts), times)
    found[EMBEDDING_AND_HEAD] = Calls(_embedding_and_head(architecture, point))
    return found


def _reduced(point: Point, fraction: float) -> Point:
    """The point of a block that processes only a fraction of the tokens (mixture of depths)."""
    if fraction == 1:
        return point
    context = max(1, round(point.context * fraction))
    if point.decode:
        return replace(point, batch=max(1, round(point.batch * fraction)), context=context)
    return replace(point, tokens=max(2, round(point.tokens * fraction)), context=context)


def _counted(things: Iterable[tuple]) -> Iterable[tuple[tuple, int]]:
    """Each distinct tuple with how often it occurs; its last item, a dict, compares by items."""
    counted: dict[tuple, list] = {}
    for *what, formats in things:
        entry = counted.setdefault((*what, *formats.items()), [(*what, formats), 0])
        entry[1] += 1
    return ((thing, times) for thing, times in counted.values())


def _add(found: Calls, calls: Iterable[Operator], times: int) -> None:
    for call in calls:
        found[call] += times


def _gemms(
    weights: tuple[Weight, ...], rows: int, formats: Mapping[str, NumberFormat]
) -> Iterable[Operator]:
    """A matrix product for each weight with a role, but for experts: `Experts` is their call."""
    for weight in weights:
        if weight.role and weight.role != "experts":
            out, into = weight.shape
            format_ = formats.get(weight.role, "bf16")
            yield Gemm(m=rows * weight.active, n=out, k=into, weights=format_)


def _residual(architecture: Architecture, point: Point) -> Operator:
    """The residual sum fused with the norm after it: one pass over the residual streams."""
    streams = architecture.hyper_connections.streams if architecture.hyper_connections else 1
    return Rows(rows=point.rows, elements=(2 + 2 * streams) * architecture.d_model)


def _norms(around: tuple[Weight, ...]) -> int:
    return sum(weight.name.endswith(("norm_in.weight", "norm_out.weight")) for weight in around)


def _embedding_and_head(architecture: Architecture, point: Point) -> Iterator[Operator]:
    yield Rows(rows=point.rows, elements=2 * architecture.d_model)  # embedding lookup
    yield Rows(rows=point.batch, elements=2 * architecture.d_model)
    yield head(architecture, point.batch)


def head(architecture: Architecture, rows: int) -> Gemm:
    """The matrix product of the language model head for `rows` tokens."""
    own = {} if architecture.tied_embeddings else architecture.precision.formats
    format_ = own.get("lm_head", "bf16")
    return Gemm(m=rows, n=architecture.vocab_size, k=architecture.d_model, weights=format_)
