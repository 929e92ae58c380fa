"""The twin: a small model of the same design that can be trained in seconds.

Kept: the share and order of layer kinds, head grouping, expert sparsity, activated width over
d_model, windows as a share of the context, latent ranks as a share of d_model, the precision plan.
Not kept: absolute sizes. State sizes shrink with d_model, so recall is to be compared at equal
cache bytes, which the report carries beside it.
"""

import math
from collections import Counter
from typing import assert_never

from .architecture import AnyBlock, Architecture
from .blocks.attention import Attention
from .blocks.feed_forward import FeedForward
from .blocks.gated_deltanet import GatedDeltaNet
from .blocks.mamba2 import Mamba2
from .blocks.mla import Mla
from .blocks.moe import Moe
from .pattern import compress, units
from .plan import Proxy

TWIN_VOCABULARY = 256  # the twin reads bytes
MAX_TWIN_EXPERTS = 16
GRAIN = 16  # sizes are multiples of it, as tensor cores and FP8 want them


def twin(architecture: Architecture, proxy: Proxy, *, context_share: float) -> Architecture:
    """The small twin of `architecture`; windows shrink to `context_share` of their length.

    Raises ValueError when `proxy.layers` cannot hold one layer of each kind.
    """
    share = proxy.d_model / architecture.d_model
    symbols = shrink_depth(architecture.symbols, proxy.layers)
    depth_share = len(units(symbols)) / architecture.num_layers
    plan = architecture.precision
    return Architecture(
        name=None,
        d_model=proxy.d_model,
        vocab_size=TWIN_VOCABULARY,
        tied_embeddings=architecture.tied_embeddings,
        pattern=compress(symbols),
        norm=architecture.norm,
        blocks={
            symbol: _shrink(block, share, context_share)
            for symbol, block in architecture.blocks.items()
        },
        precision=plan.model_copy(
            update={
                "keep_first_layers": round(plan.keep_first_layers * depth_share),
                "keep_last_layers": round(plan.keep_last_layers * depth_share),
            }
        ),
    )


def shrink_depth(symbols: tuple[str, ...], num_layers: int) -> tuple[str, ...]:
    """`num_layers` layers with the kinds of `symbols`, in their shares and at their depths.

    Shares are apportioned by largest remainder, every kind keeps at least one layer; the layers of
    a kind sit at even quantiles of the depths where it stood.
    """
    layers = units(symbols)
    if len(layers) <= num_layers:
        return symbols
    counts = Counter(layers)
    if len(counts) > num_layers:
        raise ValueError(
            f"proxy.layers must be at least the number of layer kinds, got {num_layers} for "
            f"{len(counts)} kinds: {' '.join(''.join(layer) for layer in counts)}"
        )
    seats = dict.fromkeys(counts, 1)
    for _ in range(num_layers - len(counts)):
        # The kind furthest below its share gets the next seat; ties go to the first in the model.
        poorest = max(
            counts, key=lambda kind: counts[kind] * num_layers / len(layers) - seats[kind]
        )
        seats[poorest] += 1
    placed: list[tuple[float, tuple[str, ...]]] = []
    for kind, count in seats.items():
        depths = [depth for depth, layer in enumerate(layers) if layer == kind]
        placed += [(depths[(2 * i + 1) * len(depths) // (2 * count)], kind) for i in range(count)]
    return tuple(symbol for _, layer in sorted(placed, key=lambda p: p[0]) for symbol in layer)


def _shrink(block: AnyBlock, share: float, context_share: float) -> AnyBlock:
    match block:
        case Attention():
            head_dim = _size(block.head_dim * share)
            heads, kv_heads = _grouped(
                block.heads, block.kv_heads, block.head_dim * share / head_dim
            )
            window = block.window and max(4, round(block.window * context_share))
            update = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "window": window}
        case Mla():
            v_head_dim = _size(block.v_head_dim * share)
            update = {
                "heads": max(1, round(block.heads * block.v_head_dim * share / v_head_dim)),
                "q_lora_rank": block.q_lora_rank and _size(block.q_lora_rank * share),
                "kv_lora_rank": _size(block.kv_lora_rank * share),
                "qk_nope_head_dim": _size(block.qk_nope_head_dim * share),
                "qk_rope_head_dim": _size(block.qk_rope_head_dim * share),
                "v_head_dim": v_head_dim,
            }
        case Mamba2():
            head_dim = _size(block.head_dim * share)
            heads = max(1, round(block.d_inner * share / head_dim))
            update = {
                "heads": heads,
                "head_dim": head_dim,
                "d_state": _size(block.d_state * share),
                "groups": math.gcd(block.groups, heads),
            }
        case GatedDeltaNet():
            k_head_dim, v_head_dim = (
                _size(block.k_head_dim * share),
                _size(block.v_head_dim * share),
            )
            v_heads, k_heads = _grouped(
                block.v_heads, block.k_heads, block.v_head_dim * share / v_head_dim
            )
            update = {
                "k_heads": k_heads,
                "v_heads": v_heads,
                "k_head_dim": k_head_dim,
                "v_head_dim": v_head_dim,
            }
        case FeedForward():
            update = {"width": _size(block.width * share)}
        case Moe():
            fewer = max(1.0, block.n_experts / MAX_TWIN_EXPERTS)
            top_k = max(1, round(block.top_k / fewer))
            d_expert = _size(block.top_k * block.d_expert * share / top_k)
            shared_width = block.n_shared * block.d_expert * share
            update = {
                "n_experts": max(top_k, round(block.n_experts / fewer)),
                "top_k": top_k,
                "d_expert": d_expert,
                "n_shared": max(1, round(shared_width / d_expert)) if block.n_shared else 0,
            }
        case _:
            assert_never(block)
    return type(block).model_validate(block.model_dump() | update)


def _size(exact: float) -> int:
    return max(GRAIN, GRAIN * round(exact / GRAIN))


def _grouped(heads: int, shared: int, share: float) -> tuple[int, int]:
    """Fewer heads in about the same grouping: (heads, heads that are shared by them)."""
    group = heads // shared
    fewer_shared = max(1, round(shared * share))
    fewer_group = max(1, min(group, round(heads * share / fewer_shared)))
    return fewer_shared * fewer_group, fewer_shared
