"""The proxy model: a small model of the same design as a candidate, trained in seconds.

Kept: the fractions and the order of layer kinds, head grouping, expert sparsity, activated width
over d_model, windows as a fraction of the context, latent ranks as a fraction of d_model, the
precision plan. Not kept: absolute sizes. State sizes shrink with d_model, so recall is to be
compared at equal cache bytes, which the report has as `recall_cache_bytes`.
"""

from collections import Counter

from .architecture import Architecture
from .pattern import compress, units
from .plan import ProxySettings

PROXY_VOCABULARY = 256  # the proxy model reads bytes


def proxy_architecture(
    architecture: Architecture, proxy: ProxySettings, *, context_fraction: float
) -> Architecture:
    """The proxy of `architecture`; `context_fraction` in (0, 1] is the factor on its windows.

    Raises ValueError when `proxy.layers` is less than the number of layer kinds.
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
    """The symbols of at most `num_layers` layers, each kind in its proportion and at its depths.

    Layers are apportioned to kinds by largest remainder, at least one to each; the layers of a
    kind sit at even quantiles of the depths that it has in `symbols`. Raises ValueError when
    there are more kinds than `num_layers`.
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
    allotted = dict.fromkeys(counts, 1)
    for _ in range(num_layers - len(counts)):
        # The kind furthest below its proportion gets the next layer; on a tie, the first in order.
        next_kind = max(
            counts, key=lambda kind: counts[kind] * num_layers / len(layers) - allotted[kind]
        )
        allotted[next_kind] += 1
    placed: list[tuple[float, tuple[str, ...]]] = []
    for kind, count in allotted.items():
        depths = [depth for depth, layer in enumerate(layers) if layer == kind]
        placed += [(depths[(2 * i + 1) * len(depths) // (2 * count)], kind) for i in range(count)]
    return tuple(symbol for _, layer in sorted(placed, key=lambda p: p[0]) for symbol in layer)
