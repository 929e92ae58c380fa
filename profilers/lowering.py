"""The operator calls of one forward pass of an architecture, counted by layer group."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ..search_space.accounting import Uncountable, around_weights
from ..search_space.architecture import Architecture, Body
from ..search_space.blocks.block import Weight
from ..search_space.operators import Gemm, NumberFormat, Operator, Point, Rows
from ..search_space.pattern import branches, units

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
        if architecture.hyper_connections and any(w.name == "streams.mix.weight" for w in around):
            streams = architecture.hyper_connections.streams
            mixing = Gemm(m=point.rows * streams, n=d_model, k=streams)
            _add(found[group], (mixing,), times)
        _add(found[group], (_residual(architecture, point),), times * max(1, _norms(around)))
    for (group, symbol, first, formats), times in _counted(
        (
            architecture.symbols[body.sub_block],
            body.symbol,
            index == 0,
            architecture.formats(body.sub_block),
        )
        for uses in _uses(architecture).values()
        for index, body in enumerate(uses)
    ):
        block = architecture.blocks[symbol]
        block_point = _reduced(point, block.token_fraction)
        kv, experts = formats.get("kv_cache", "bf16"), formats.get("experts", "bf16")
        weights = [w for w in block.weights(d_model) if not (first and w.owner == "later")]
        _add(found[group], _gemms(weights, block_point.rows, formats), times)
        _add(found[group], block.operators(d_model, block_point, kv=kv, experts=experts), times)
    found[EMBEDDING_AND_HEAD] = Calls(_embedding_and_head(architecture, point))
    for group, groups in _groups_read(architecture):
        _add(found[group], _attend_groups(architecture, point, groups), 1)
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
    weights: Iterable[Weight], rows: int, formats: Mapping[str, NumberFormat]
) -> Iterable[Operator]:
    """A matrix product for each weight with a role, but for experts: `Experts` is their call."""
    for weight in weights:
        if weight.role and weight.role != "experts":
            out, into = weight.shape
            format_ = formats.get(weight.role, "bf16")
            yield Gemm(m=rows * weight.active, n=out, k=into, weights=format_)


def _uses(architecture: Architecture) -> dict[str, list[Body]]:
    """The uses of each block in order of depth."""
    found: dict[str, list[Body]] = {}
    for body in architecture.bodies:
        found.setdefault(body.symbol, []).append(body)
    return found


def _groups_read(architecture: Architecture) -> Iterator[tuple[str, int]]:
    """With attention residuals: each sub-block, then the head, and how many layer groups it reads.

    A group closes in front of every `block`-th layer; the open one is read too.
    """
    if architecture.attention_residuals is None:
        return
    closed = 0
    for layer, group in enumerate(units(architecture.symbols)):
        closed += layer % architecture.attention_residuals.block == 0
        for symbol in group:
            if not architecture.blocks[branches(symbol)[0]].own_norms:
                yield symbol, closed + 1
    yield EMBEDDING_AND_HEAD, closed + 1


def _attend_groups(architecture: Architecture, point: Point, groups: int) -> Iterator[Operator]:
    """Softmax attention of a learned query over the sums of layer groups: norm, scores, mean."""
    d_model = architecture.d_model
    yield Rows(rows=point.rows * groups, elements=2 * d_model)
    yield Gemm(m=point.rows * groups, n=1, k=d_model)
    yield Gemm(m=point.rows, n=d_model, k=groups)


def _residual(architecture: Architecture, point: Point) -> Operator:
    """The residual sum fused with the norm after it: one pass over the residual streams."""
    streams = architecture.hyper_connections.streams if architecture.hyper_connections else 1
    return Rows(rows=point.rows, elements=(2 + 2 * streams) * architecture.d_model)


def _norms(around: tuple[Weight, ...]) -> int:
    return sum(weight.name.endswith(("norm_in.weight", "norm_out.weight")) for weight in around)


def _embedding_and_head(architecture: Architecture, point: Point) -> Iterator[Operator]:
    yield Rows(rows=point.rows, elements=2 * architecture.d_model)  # embedding lookup
    yield Rows(rows=point.batch, elements=2 * architecture.d_model)
    if architecture.hyper_connections:  # the streams become one hidden state
        streams = architecture.hyper_connections.streams
        yield Gemm(m=point.rows, n=streams, k=streams * architecture.d_model)
    yield head(architecture, point.batch)


def head(architecture: Architecture, rows: int) -> Gemm:
    """The matrix product of the language model head for `rows` tokens."""
    own = {} if architecture.tied_embeddings else architecture.precision.formats
    format_ = own.get("lm_head", "bf16")
    return Gemm(m=rows, n=architecture.vocab_size, k=architecture.d_model, weights=format_)
