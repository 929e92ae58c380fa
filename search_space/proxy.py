"""The twin: a small model of the same design that can be trained in seconds.

Kept: the share and order of layer kinds, head grouping, expert sparsity, activated width over
d_model, windows as a share of the context, latent ranks as a share of d_model, the precision plan.
Not kept: absolute sizes. State sizes shrink with d_model, so recall is to be compared at equal
cache bytes, which the report carries beside it.
"""

from collections import Counter

from .architecture import Architecture
from .pattern import compress, units
from .plan import Proxy

PROXY_VOCABULARY = 256  # the twin reads bytes


def proxy_architecture(
    architecture: Architecture, proxy: Proxy, *, context_fraction: float
) -> Architecture:
    """The small twin of `architecture`; windows shrink to `context_share` of their length.

    Raises ValueError when `proxy.layers` cannot hold one layer of each kind.
    """
    share = proxy.d_model / architecture.d_model
    symbols = shrink_depth(architecture.symbols, proxy.layers)
    depth_share = len(units(symbols)) / architecture.num_layers
    plan = architecture.precision
    used = {body.symbol for body in architecture.bodies}
    blocks = {
        symbol: architecture.blocks[symbol].to_proxy(share, context_fraction)
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
