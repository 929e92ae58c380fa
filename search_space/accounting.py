"""What an architecture counts to, by formula: parameters, FLOPs, cache and weight bytes."""

from collections import Counter
from dataclasses import dataclass
from math import ceil

from .architecture import Architecture, Precision
from .blocks.block import Cache, Weight, linear, vector

BF16_BYTES, FP8_BYTES, FP32_BYTES = 2, 1, 4


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameter counts; publishers use all three conventions of `active`.

    `active` has every tensor once and of each expert stack the `top_k` experts a token meets.
    """

    total: int
    active: int
    active_no_input_embedding: int  # an untied input table is a lookup, not work
    active_no_embeddings: int  # neither input table nor head


@dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """What sequences hold while decoding. A windowed cache stops growing at its cap."""

    kv_bytes_per_token: int
    windowed_kv_bytes_cap: int
    state_bytes_per_sequence: int


@dataclass(frozen=True, kw_only=True)
class PlacedWeight:
    """A parameter tensor with the sub-block it belongs to (None: around the stack) and its format."""

    sub_block: int | None
    weight: Weight
    fp8: bool


def block_weights(architecture: Architecture) -> dict[str, tuple[Weight, ...]]:
    """The parameter tensors of one sub-block of each symbol, its norms around the body included."""
    placements = {"pre": ("norm_in",), "post": ("norm_out",), "sandwich": ("norm_in", "norm_out")}
    d_model = architecture.d_model
    gains = tuple(
        vector(f"{norm}.weight", d_model) for norm in placements[architecture.norm.placement]
    )
    return {
        symbol: (*gains, *block.weights(d_model)) for symbol, block in architecture.blocks.items()
    }


def outer_weights(architecture: Architecture) -> tuple[Weight, ...]:
    """The parameter tensors around the stack: table, last norm, and a head of its own if untied."""
    d_model, vocabulary = architecture.d_model, architecture.vocab_size
    table = Weight(name="embedding.weight", shape=(vocabulary, d_model))
    head = linear("lm_head", vocabulary, d_model, "lm_head")
    return (
        table,
        vector("norm.weight", d_model),
        *(() if architecture.tied_embeddings else (head,)),
    )


def placed_weights(architecture: Architecture) -> tuple[PlacedWeight, ...]:
    """Every parameter tensor of the model with its place and format."""
    weights = block_weights(architecture)
    inner = (
        PlacedWeight(sub_block=index, weight=weight, fp8=weight.role in fp8)
        for index, symbol in enumerate(architecture.symbols)
        for fp8 in (architecture.fp8_roles(index),)
        for weight in weights[symbol]
    )
    outer = (
        PlacedWeight(sub_block=None, weight=weight, fp8=weight.role in architecture.precision.fp8)
        for weight in outer_weights(architecture)
    )
    return (*outer, *inner)


def parameters(architecture: Architecture) -> Parameters:
    """Count parameters; equals the built module's to the last one."""
    outer = sum(weight.total_count for weight in outer_weights(architecture))
    total = active = outer
    times = Counter(architecture.symbols)
    for symbol, weights in block_weights(architecture).items():
        total += times[symbol] * sum(weight.total_count for weight in weights)
        active += times[symbol] * sum(weight.active_count for weight in weights)
    table = architecture.vocab_size * architecture.d_model
    lookup = 0 if architecture.tied_embeddings else table
    return Parameters(
        total=total,
        active=active,
        active_no_input_embedding=active - lookup,
        active_no_embeddings=active - lookup - table,
    )


def visible(context: int, window: int | None) -> int:
    """How many cached positions the token at the end of `context` sees."""
    return context if window is None else min(context, window)


def mean_visible(tokens: int, window: int | None) -> float:
    """The same, averaged over the tokens of a causal prefill."""
    if window is None or window >= tokens:
        return (tokens + 1) / 2
    return window - window * (window - 1) / (2 * tokens)


def flops_per_token(architecture: Architecture, context: int) -> float:
    """Forward FLOPs of one token that closes a context; one multiply-add is two FLOPs.

    Matrices that a token meets, the head (tied or not), and the mixing itself. Norms, activations,
    rotary positions and the softmax are left out, as is usual: they are bandwidth, not FLOPs.
    """
    table = architecture.vocab_size * architecture.d_model
    times, total = Counter(architecture.symbols), 2.0 * table
    for symbol, weights in block_weights(architecture).items():
        block = architecture.blocks[symbol]
        matrices = sum(weight.active_count for weight in weights if weight.role)
        seen = visible(context, block.cache().window)
        total += times[symbol] * (2 * matrices + block.mixing_flops(seen))
    return total


def kv_bytes(cache: Cache, *, fp8: bool) -> int:
    """Bytes one token adds to a cache: BF16, or FP8 with an fp32 scale a token and head."""
    if fp8:
        return cache.kv_elements * FP8_BYTES + cache.kv_scales * FP32_BYTES
    return cache.kv_elements * BF16_BYTES


def cache_bytes(architecture: Architecture) -> CacheBytes:
    """Cache by kind: growing, capped by a window, constant (fp32 state, BF16 convolution tail)."""
    growing = capped = state = 0
    for index, (_, block) in enumerate(architecture.sub_blocks):
        cache = block.cache()
        a_token = kv_bytes(cache, fp8="kv_cache" in architecture.fp8_roles(index))
        if cache.window is None:
            growing += a_token
        else:
            capped += cache.window * a_token
        state += cache.state_elements * FP32_BYTES + cache.conv_elements * BF16_BYTES
    return CacheBytes(
        kv_bytes_per_token=growing, windowed_kv_bytes_cap=capped, state_bytes_per_sequence=state
    )


def cache_bytes_at(architecture: Architecture, context: int) -> int:
    """Bytes that one sequence of `context` tokens caches, windows saturating."""
    total = 0
    for index, (_, block) in enumerate(architecture.sub_blocks):
        cache = block.cache()
        a_token = kv_bytes(cache, fp8="kv_cache" in architecture.fp8_roles(index))
        total += visible(context, cache.window) * a_token
        total += cache.state_elements * FP32_BYTES + cache.conv_elements * BF16_BYTES
    return total


def weight_bytes(architecture: Architecture) -> int:
    """Bytes of all weights as served: BF16, or FP8 with the recipe's fp32 scales."""
    return sum(
        bytes_of(placed.weight, architecture.precision if placed.fp8 else None)
        for placed in placed_weights(architecture)
    )


def bytes_of(weight: Weight, fp8: Precision | None) -> int:
    """Bytes of one tensor, all its copies: BF16 where `fp8` is None."""
    if fp8 is None:
        return weight.total_count * BF16_BYTES
    return weight.total_count * FP8_BYTES + weight.copies * _scales(weight.shape, fp8) * FP32_BYTES


def _scales(shape: tuple[int, ...], plan: Precision) -> int:
    match plan.recipe:
        case "tensorwise":
            return 1
        case "rowwise":
            return shape[0]
        case "blockwise":
            return ceil(shape[0] / 128) * ceil(shape[1] / 128)
