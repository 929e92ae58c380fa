"""An architecture at a point as the operator calls of one forward pass, counted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ..search_space.accounting import Uncountable, around_weights
from ..search_space.architecture import Architecture, Body
from ..search_space.blocks.block import Weight
from ..search_space.operators import Gemm, NumberFormat, Operator, Point, Rows
from ..search_space.pattern import branches, units

Calls = Counter[Operator]
EMBEDDING_AND_HEAD = "ends"  # the place of the table, the last norm and the head


def calls(architecture: Architecture, point: Point) -> Calls:
    """Every operator call of a forward pass, the head at the last token of a sequence included.

    Raises Uncountable for an encoder-decoder.
    """
    return joined(layer_calls(architecture, point))


def joined(placed: Mapping[str, Calls]) -> Calls:
    """The calls of all places together."""
    found = Calls()
    for part in placed.values():
        found.update(part)
    return found


def layer_calls(architecture: Architecture, point: Point) -> dict[str, Calls]:
    """The same by where they stand: the symbol of the sub-block, a group's with its brackets, or
    `EMBEDDING_AND_HEAD`."""
    if architecture.encoder:
        raise Uncountable("the cost of an encoder-decoder is not estimated")
    d_model = architecture.d_model
    found = {group: Calls() for group in dict.fromkeys(architecture.symbols)}
    for (group, placement, formats), times in _alike(
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
    for (group, symbol, first, formats), times in _alike(
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
        part = _taking_part(point, block.token_fraction)
        kv, experts = formats.get("kv_cache", "bf16"), formats.get("experts", "bf16")
        weights = [w for w in block.weights(d_model) if not (first and w.owner == "later")]
        _add(found[group], _gemms(weights, part.rows, formats), times)
        _add(found[group], block.operators(d_model, part, kv=kv, experts=experts), times)
    found[EMBEDDING_AND_HEAD] = Calls(_ends(architecture, point))
    for group, groups in _groups_read(architecture):
        _add(found[group], _attend_groups(architecture, point, groups), 1)
    return found


def _taking_part(point: Point, share: float) -> Point:
    """The point that a block sees that works on a share of the tokens."""
    if share == 1:
        return point
    context = max(1, round(point.context * share))
    if point.decode:
        return replace(point, batch=max(1, round(point.batch * share)), context=context)
    return replace(point, tokens=max(2, round(point.tokens * share)), context=context)


def _alike(things: Iterable[tuple]) -> Iterable[tuple[tuple, int]]:
    """What occurs, and how often; formats, which end each thing, are compared as they read."""
    counted: dict[tuple, list] = {}
    for *what, formats in things:
        known = counted.setdefault((*what, *formats.items()), [(*what, formats), 0])
        known[1] += 1
    return ((thing, times) for thing, times in counted.values())


def _add(found: Calls, calls: Iterable[Operator], times: int) -> None:
    for call in calls:
        found[call] += times


def _gemms(
    weights: Iterable[Weight], rows: int, formats: Mapping[str, NumberFormat]
) -> Iterable[Operator]:
    """A product for each matrix that a token meets; stacked experts are a call of their own."""
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
    """One pass over the residual streams: the sum, and the norm that takes it along."""
    streams = architecture.hyper_connections.streams if architecture.hyper_connections else 1
    return Rows(rows=point.rows, elements=(2 + 2 * streams) * architecture.d_model)


def _norms(around: tuple[Weight, ...]) -> int:
    return sum(weight.name.endswith(("norm_in.weight", "norm_out.weight")) for weight in around)


def _ends(architecture: Architecture, point: Point) -> Iterator[Operator]:
    yield Rows(rows=point.rows, elements=2 * architecture.d_model)  # embedding lookup
    yield Rows(rows=point.batch, elements=2 * architecture.d_model)
    if architecture.hyper_connections:  # the streams become one hidden state
        streams = architecture.hyper_connections.streams
        yield Gemm(m=point.rows, n=streams, k=streams * architecture.d_model)
    yield head(architecture, point.batch)


def head(architecture: Architecture, rows: int) -> Gemm:
    """The product that gives the logits of so many tokens."""
    own = {} if architecture.tied_embeddings else architecture.precision.formats
    format_ = own.get("lm_head", "bf16")
    return Gemm(m=rows, n=architecture.vocab_size, k=architecture.d_model, weights=format_)
