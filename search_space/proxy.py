"""Proxy models: small models of the same design that train in seconds.

Kept are the proportions and the order of layer kinds, head grouping, expert sparsity, active width
over d_model, windows relative to the context, latent ranks relative to d_model, and the precision
plan. Absolute sizes are not kept. State sizes shrink with d_model, so recall should be compared at
equal cache bytes, which the report has beside it.
"""

from collections import Counter

from .architecture import Architecture
from .pattern import compress, units
from .plan import Proxy

PROXY_VOCABULARY = 256  # bytes


def proxy_architecture(
    architecture: Architecture, proxy: Proxy, *, context_fraction: float
) -> Architecture:
    """The proxy model of `architecture`; windows are multiplied by `context_fraction`.

    Raises ValueError if `proxy.layers` is less than the number of layer kinds.
    """
    width_fraction = proxy.d_model / architecture.d_model
    symbols = shrink_depth(architecture.symbols, proxy.layers)
    depth_fraction = len(units(symbols)) / architecture.num_layers
    plan = architecture.precision
    used = {body.symbol for body in architecture.bodies}
    blocks = {
        symbol: architecture.blocks[symbol].to_proxy(width_fraction, context_fraction)
        for symbol in architecture.blocks
        if symbol in used
    }
    return architecture.changed(
        name=None,
        d_model=proxy.d_model,
        vocab_size=PROXY_VOCABULARY,
        pattern=compress(symbols),
        blocks=blocks,
        mtp=None,
        precision=plan.model_copy(
            update={
                "keep_first_layers": round(plan.keep_first_layers * depth_fraction),
                "keep_last_layers": round(plan.keep_last_layers * depth_fraction),
            }
        ),
    )


def shrink_depth(symbols: tuple[str, ...], num_layers: int) -> tuple[str, ...]:
    """`num_layers` layers with the kinds of `symbols`, in the same proportions and order.

    Layers are apportioned to kinds by the largest deficit, at least one each; those of a kind are
    at even quantiles of the depths of its layers. Raises ValueError for fewer layers than kinds.
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
    kept = dict.fromkeys(counts, 1)
    for _ in range(num_layers - len(counts)):
        # The kind furthest below its quota gets the next layer; among equals the first one.
        next_kind = max(
            counts, key=lambda kind: counts[kind] * num_layers / len(layers) - kept[kind]
        )
        kept[next_kind] += 1
    placed: list[tuple[float, tuple[str, ...]]] = []
    for kind, count in kept.items():
        depths = [depth for depth, layer in enumerate(layers) if layer == kind]
        placed += [(depths[(2 * i + 1) * len(depths) // (2 * count)], kind) for i in range(count)]
    return tuple(symbol for _, layer in sorted(placed, key=lambda p: p[0]) for symbol in layer)
