"""Operator calls of recurrent mixers: one for whole sequences, another for a decoding step."""

from ..operators import Conv, ConvStep, Operator, Point, RecurrentStep, Scan


def convolution(point: Point, channels: int, width: int) -> Operator:
    """The call of the short causal convolution before a mixer."""
    if point.decode:
        return ConvStep(batch=point.batch, channels=channels, width=width)
    return Conv(batch=point.batch, tokens=point.tokens, channels=channels, width=width)


def recurrence(
    point: Point,
    *,
    k_heads: int,
    heads: int,
    k_dim: int,
    v_dim: int,
    delta: bool = False,
    writes: int = 1,
) -> Operator:
    """The call of a linear recurrence with `heads` states of `k_dim` x `v_dim`."""
    if point.decode:
        return RecurrentStep(
            batch=point.batch, heads=heads, k_dim=k_dim, v_dim=v_dim, delta=delta, writes=writes
        )
    return Scan(
        batch=point.batch,
        tokens=point.tokens,
        k_heads=k_heads,
        heads=heads,
        k_dim=k_dim,
        v_dim=v_dim,
        delta=delta,
        writes=writes,
    )
