"""Counts by formula: parameters, FLOPs, cache and weight bytes of an architecture."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from .architecture import Architecture, Body, Placement, Precision
from .blocks.block import Block, Cache, Weight, biases, linear, owners, vector
from .join import Join
from .operators import ACTIVATION_BYTES, NumberFormat, visible
from .pattern import branches, unroll

BITS_OF: dict[NumberFormat, float] = {"bf16": 16, "fp8": 8, "int8": 8, "fp4": 4}
SCALE_BYTES = 4  # fp32
FP4_GROUP = {"mxfp4": 32, "nvfp4": 16}  # weights per one-byte scale
StateFormat = Literal["fp32", "bf16"]
STATE_BYTES: dict[StateFormat, int] = {"fp32": 4, "bf16": 2}
PAGE_TOKENS = 16  # of one layer, as vLLM's pages have


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameter counts; publishers use all three conventions of `active`.

    `active` has all parameters but those of the experts that a token does not use.
    """

    total: int
    active: int
    active_no_input_embedding: int  # an untied input table is only a lookup
    active_no_embeddings: int  # neither input table nor head


@dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """Cache of one sequence. A windowed cache stops growing at its cap."""

    kv_bytes_per_token: float
    index_bytes_per_token: float  # keys of token indexers
    windowed_kv_bytes_cap: int
    state_bytes_per_sequence: int


@dataclass(frozen=True, kw_only=True)
class LocatedWeight:
    """A parameter tensor, its sub-block (None: outside the stack) and its number format."""

    sub_block: int | None
    weight: Weight
    format: NumberFormat


class Uncountable(ValueError):
    """The quantity is not defined for the architecture: FLOPs per token of an encoder-decoder."""


def norm(architecture: Architecture, name: str, width: int | None = None) -> tuple[Weight, ...]:
    """The weights of one norm: a gain, and for LayerNorm a bias."""
    width = width or architecture.d_model
    bias = biases({name: width}) if architecture.norm.type == "layer" else ()
    return (vector(f"{name}.weight", width), *bias)


_NORMS: dict[Placement, tuple[str, ...]] = {
    "pre": ("norm_in",),
    "stream": ("norm_in",),
    "post": ("norm_out",),
    "sandwich": ("norm_in", "norm_out"),
}


def around_weights(
    architecture: Architecture, group: str, placement: Placement
) -> tuple[Weight, ...]:
    """The weights of a sub-block outside its blocks: norms, residual streams, gates."""
    d_model = architecture.d_model
    blocks = [architecture.blocks[symbol] for symbol in branches(group)]
    if len(blocks) == 1 and blocks[0].own_norms:
        return ()
    found = [weight for name in _NORMS[placement] for weight in norm(architecture, name)]
    if architecture.hyper_connections:
        found += _stream_weights(d_model, architecture.hyper_connections.streams)
    if architecture.attention_residuals:
        found += [vector("residual_query", d_model), *norm(architecture, "residual_norm")]
    if len(blocks) == 1 and blocks[0].depth_capacity is not None:
        found.append(linear("depth_router", 1, d_model, "router"))
    if len(blocks) > 1:
        join = architecture.joins.get(group, Join())
        found += join.gates(d_model, len(blocks))
        for index in range(len(blocks) if join.branch_norms else 0):
            for name in ("norm_in", "norm_out") if index else ("norm_out",):
                found += norm(architecture, f"branches.{index}.{name}")
    return tuple(found)


def block_weights(architecture: Architecture, body: Body) -> tuple[Weight, ...]:
    """The weights of a block, with the index of its branch in their names if it has one."""
    weights = body.block.weights(architecture.d_model)
    if body.branch is None:
        return weights
    return tuple(_renamed(weight, f"branches.{body.branch}.") for weight in weights)


def _renamed(weight: Weight, prefix: str) -> Weight:
    return Weight(**{**vars(weight), "name": prefix + weight.name})


def _stream_weights(d_model: int, n: int) -> tuple[Weight, ...]:
    """The weights of n residual streams, named as in transformers, models/deepseek_v4."""
    return (
        linear("streams.mix", (2 + n) * n, n * d_model, "gate"),
        vector("streams.base", (2 + n) * n),
        vector("streams.scale", 3),
    )


def outer_weights(architecture: Architecture) -> tuple[Weight, ...]:
    """The weights outside the stack: embedding table, last norm, and the head if untied."""
    d_model, vocabulary = architecture.d_model, architecture.vocab_size
    encoder, streams = architecture.encoder, architecture.hyper_connections
    found = [Weight(name="embedding.weight", shape=(vocabulary, d_model))]
    if architecture.embedding_norm:
        found += norm(architecture, "embedding_norm")
    if encoder:
        found += norm(architecture, "encoder.norm")
        if encoder.vocab_size:
            table = (encoder.vocab_size, d_model)
            found.append(Weight(name="encoder.embedding.weight", shape=table))
    if streams:
        n = streams.streams
        found.append(linear("stream_head.mix", n, n * d_model, "gate"))
        found += [vector("stream_head.base", n), vector("stream_head.scale", 1)]
    if architecture.attention_residuals:
        found += [vector("residual_query", d_model), *norm(architecture, "residual_norm")]
    found += norm(architecture, "norm")
    if not architecture.tied_embeddings:
        found.append(linear("lm_head", vocabulary, d_model, "lm_head"))
        if architecture.lm_head_bias:
            found += biases({"lm_head": vocabulary})
    return tuple(found)


def mtp_weights(architecture: Architecture) -> tuple[Weight, ...]:
    """The weights of one MTP module outside its blocks; table and head are the model's."""
    return (
        *norm(architecture, "embedding_norm"),
        *norm(architecture, "hidden_norm"),
        linear("in_proj", architecture.d_model, 2 * architecture.d_model, "gate"),
        *norm(architecture, "norm"),
    )


def mtp_module(architecture: Architecture) -> Architecture:
    """The blocks of one MTP module as an architecture."""
    assert architecture.mtp is not None, "called only for an architecture with MTP modules"
    groups = unroll(architecture.mtp.pattern)
    used = {symbol for group in groups for symbol in branches(group)}
    plan, norm_ = architecture.precision, architecture.norm
    return architecture.changed(
        pattern=architecture.mtp.pattern,
        mtp=None,
        attention_residuals=None,
        blocks={s: block for s, block in architecture.blocks.items() if s in used},
        joins={g: join for g, join in architecture.joins.items() if g in groups},
        norm=norm_.model_copy(
            update={"of_mixer": {s: p for s, p in norm_.of_mixer.items() if s in used}}
        ),
        precision=plan.model_copy(update={"keep_first_layers": 0, "keep_last_layers": 0}),
    )


def located_weights(architecture: Architecture) -> tuple[LocatedWeight, ...]:
    """Every weight of the decoder with its sub-block and format, MTP modules excluded."""
    uses = Counter[str]()
    top = architecture.precision.formats
    found = [
        LocatedWeight(sub_block=None, weight=weight, format=_format(weight, top))
        for weight in outer_weights(architecture)
    ]
    inside = [
        (index, weight)
        for index, group in enumerate(architecture.symbols)
        for weight in around_weights(architecture, group, architecture.norm_placement(index))
    ]
    for body in architecture.bodies:
        use, block = uses[body.symbol], body.block
        owned = (w for w in block_weights(architecture, body) if _owns(w, block, use))
        inside += [(body.sub_block, weight) for weight in owned]
        uses[body.symbol] += 1
    found += [
        LocatedWeight(
            sub_block=index, weight=weight, format=_format(weight, architecture.formats(index))
        )
        for index, weight in inside
    ]
    return tuple(found)


def _owns(weight: Weight, block: Block, use: int) -> bool:
    """Whether use number `use` of a block has a tensor of the weight of its own."""
    return owners(weight, block, use + 1) > owners(weight, block, use)


def _format(weight: Weight, formats: dict) -> NumberFormat:
    return formats.get(weight.role, "bf16")


def parameters(architecture: Architecture, *, mtp: bool = False) -> Parameters:
    """Count parameters, equal to those of the built module; `mtp` includes the MTP modules."""
    outer = sum(weight.total_count for weight in outer_weights(architecture))
    total = active = outer
    for pattern, times in _stacks(architecture, mtp):
        stack_total, stack_active = _counted(architecture, pattern)
        total += times * stack_total
        active += times * stack_active
    if mtp and architecture.mtp:
        around = sum(weight.total_count for weight in mtp_weights(architecture))
        total += architecture.mtp.depth * around
        active += architecture.mtp.depth * around
    table = architecture.vocab_size * architecture.d_model
    lookup = 0 if architecture.tied_embeddings else table
    if architecture.encoder and architecture.encoder.vocab_size:
        lookup += architecture.encoder.vocab_size * architecture.d_model
    return Parameters(
        total=total,
        active=active,
        active_no_input_embedding=active - lookup,
        active_no_embeddings=active - lookup - table,
    )


def _stacks(architecture: Architecture, mtp: bool) -> Iterator[tuple[str, int]]:
    """The patterns of the model and how many stacks of each there are."""
    yield architecture.pattern, 1
    if architecture.encoder:
        yield architecture.encoder.pattern, 1
    if mtp and architecture.mtp:
        yield architecture.mtp.pattern, architecture.mtp.depth


def _counted(architecture: Architecture, pattern: str) -> tuple[int, int]:
    """(total, active) parameters of one stack; the placement of norms does not change them."""
    total = active = 0
    for group, uses in Counter(unroll(pattern)).items():
        for weight in around_weights(architecture, group, architecture.norm.placement):
            total += uses * weight.total_count
            active += uses * weight.active_count
    for symbol, uses in Counter(body.symbol for body in architecture.bodies_of(pattern)).items():
        block = architecture.blocks[symbol]
        for weight in block.weights(architecture.d_model):
            total += owners(weight, block, uses) * weight.total_count
            active += owners(weight, block, uses) * weight.active_count
    return total, active


def flops_per_token(architecture: Architecture, context: int) -> float:
    """Forward FLOPs of the token that closes a context; one multiply-add is two FLOPs.

    The sum of all weight matrices used per token, the head (tied or not) and the operator calls.
    Norms, activations, rotary positions and the softmax are left out, as is usual: they are bound
    by bandwidth. Raises Uncountable for an encoder-decoder, whose work depends on the source too.
    """
    if architecture.encoder:
        raise Uncountable("FLOPs per token are not defined for an encoder-decoder")
    d_model = architecture.d_model
    total = 2.0 * architecture.vocab_size * d_model
    for group, times in Counter(architecture.symbols).items():
        around = around_weights(architecture, group, architecture.norm.placement)
        total += times * 2 * _projected(around)
    for symbol, times in Counter(body.symbol for body in architecture.bodies).items():
        block = architecture.blocks[symbol]
        projections = 2 * _projected(block.weights(d_model))
        operators = block.operator_flops(d_model, round(context * block.token_fraction))
        total += times * (projections + operators) * block.token_fraction
    return total


def _projected(weights: Iterable[Weight]) -> int:
    """The elements of the matrices that a token is multiplied with, experts excluded."""
    return sum(
        weight.active_count for weight in weights if weight.role and weight.role != "experts"
    )


def kv_bytes(elements: int, scales: int, kv: NumberFormat) -> float:
    """Bytes of `elements` cached numbers: BF16, or 8 bits with `scales` fp32 scales."""
    return elements * BITS_OF[kv] / 8 + (0 if kv == "bf16" else scales * SCALE_BYTES)


def _caches(
    architecture: Architecture, kv: NumberFormat | None, mtp: bool
) -> Iterator[tuple[Cache, float, NumberFormat]]:
    """Each cache of the model, the fraction of the tokens it has, and the KV format."""
    for body in architecture.bodies:
        planned = architecture.formats(body.sub_block).get("kv_cache", "bf16")
        yield *_cache(body.block, architecture.d_model), kv or planned
    if mtp and architecture.mtp:
        planned = architecture.precision.formats.get("kv_cache", "bf16")
        for body in architecture.bodies_of(architecture.mtp.pattern) * architecture.mtp.depth:
            yield *_cache(body.block, architecture.d_model), kv or planned


def _cache(block: Block, d_model: int) -> tuple[Cache, float]:
    """A block's cache and token fraction.

    With merged tokens it has the sum of the open group and the output of the last one besides.
    """
    cache = block.cache(d_model)
    if block.token_merge is None:
        return cache, block.token_fraction
    held = cache.conv_elements + 2 * d_model
    return replace(cache, conv_elements=held), block.token_fraction


def cache_bytes(
    architecture: Architecture,
    *,
    kv: NumberFormat | None = None,
    state: StateFormat = "fp32",
    mtp: bool = False,
) -> CacheBytes:
    """Bytes of growing, windowed and constant caches (states, BF16 convolution tails).

    `kv` is the format of keys and values, by default that of the precision plan, `state` that of
    recurrent states; `mtp` includes the MTP modules.
    """
    growing = index = 0.0
    capped = constant = 0
    for cache, fraction, format_ in _caches(architecture, kv, mtp):
        per_token = kv_bytes(cache.kv_elements, cache.kv_scales, format_)
        if cache.window is None:
            growing += fraction * per_token
        else:
            capped += round(cache.window * per_token)
        growing += (
            fraction
            * kv_bytes(cache.compressed_elements, cache.kv_scales, format_)
            / cache.every
            * (cache.compressed_elements > 0)
        )
        index += fraction * cache.index_elements * ACTIVATION_BYTES / cache.every
        constant += _constant(cache, state)
    return CacheBytes(
        kv_bytes_per_token=_whole(growing),
        index_bytes_per_token=_whole(index),
        windowed_kv_bytes_cap=capped,
        state_bytes_per_sequence=constant,
    )


def _constant(cache: Cache, state: StateFormat) -> int:
    return cache.state_elements * STATE_BYTES[state] + cache.conv_elements * ACTIVATION_BYTES


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def cache_bytes_at(
    architecture: Architecture,
    context: int,
    *,
    kv: NumberFormat | None = None,
    state: StateFormat = "fp32",
    mtp: bool = False,
) -> int:
    """Bytes that one sequence of `context` tokens caches; arguments as in `cache_bytes`."""
    total = 0.0
    for cache, fraction, format_ in _caches(architecture, kv, mtp):
        tokens = int(context * fraction)
        held, entries = visible(tokens, cache.window), tokens // cache.every
        total += held * kv_bytes(cache.kv_elements, cache.kv_scales, format_)
        if cache.compressed_elements:
            total += entries * kv_bytes(cache.compressed_elements, cache.kv_scales, format_)
        total += entries * cache.index_elements * ACTIVATION_BYTES
        total += _constant(cache, state)
    return round(total)


def paged_cache_bytes(
    architecture: Architecture,
    context: int,
    *,
    kv: NumberFormat | None = None,
    state: StateFormat = "fp32",
) -> int:
    """Bytes that a paged engine allocates for one sequence of `context` tokens.

    Pages hold `PAGE_TOKENS` tokens of a layer. Where layers have states, all pages have one size,
    which grows until a state fits (vLLM); a window has one page more than it fills.
    """
    caches = list(_caches(architecture, kv, mtp=False))
    tokens_bytes = [kv_bytes(c.kv_elements, c.kv_scales, format_) for c, _, format_ in caches]
    largest = max(tokens_bytes, default=0.0)
    states = [_constant(cache, state) for cache, _, _ in caches]
    page = PAGE_TOKENS * largest
    if largest and max(states):
        page = max(page, page * ceil(max(states) / page))
    total = 0.0
    for (cache, fraction, format_), per_token, of_state in zip(
        caches, tokens_bytes, states, strict=True
    ):
        tokens = int(context * fraction)
        if per_token:
            tokens_per_page = int(page // per_token)
            pages = ceil(tokens / tokens_per_page)
            if cache.window is not None:
                pages = min(pages, ceil((cache.window - 1) / tokens_per_page) + 1)
            total += pages * page
        if of_state:
            total += max(of_state, page)
        entries = ceil(tokens / cache.every)
        if cache.compressed_elements:
            total += entries * kv_bytes(cache.compressed_elements, cache.kv_scales, format_)
        total += entries * cache.index_elements * ACTIVATION_BYTES
    return round(total)


def weight_bytes(architecture: Architecture) -> int:
    """Bytes of all weights in served precision, scales included."""
    return sum(
        bytes_of(located.weight, located.format, architecture.precision)
        for located in located_weights(architecture)
    )


def bytes_of(weight: Weight, format_: NumberFormat, plan: Precision) -> int:
    """Bytes of one tensor with all its copies and scales."""
    numbers = round(weight.total_count * BITS_OF[format_] / 8)
    match format_:
        case "bf16":
            return numbers
        case "fp4":
            groups = ceil(weight.shape[-1] / FP4_GROUP[plan.fp4_scales])
            return numbers + weight.total_count // weight.shape[-1] * groups
        case _:
            return numbers + weight.copies * scales(weight.shape, plan) * SCALE_BYTES


def scales(shape: tuple[int, ...], plan: Precision) -> int:
    """The number of fp32 scales of an FP8 matrix."""
    match plan.recipe:
        case "tensorwise":
            return 1
        case "rowwise":
            return shape[0]
        case "blockwise":
            return ceil(shape[0] / 128) * ceil(shape[1] / 128)
