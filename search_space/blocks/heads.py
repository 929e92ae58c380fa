"""Head layouts: which rows or columns of a weight belong to which heads."""

from collections.abc import Mapping
from dataclasses import dataclass

Heads = tuple[int, int]  # how many, and the width of each


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """A weight whose rows (`axis` 0) or columns (`axis` 1) are the heads of several parts.

    `parts` has the number and the width of the heads of each part, in order: one part after the
    other, or with `interleaved` the first head of each part, then the second of each, and so on.
    The parts "q", "k", "v", "z" and "o" are query, key, value, output gate and output in every
    kind of block; a part of any other name has a counterpart only in the same kind.
    """

    axis: int
    parts: Mapping[str, Heads]
    interleaved: bool = False


def head_rows(**parts: Heads) -> HeadLayout:
    """The layout of a projection into heads."""
    return HeadLayout(axis=0, parts=parts)


def head_columns(**parts: Heads) -> HeadLayout:
    """The layout of a projection from heads."""
    return HeadLayout(axis=1, parts=parts)


def linear_mixer_heads(keys: Heads, values: Heads, **further: Heads) -> dict[str, HeadLayout]:
    """The layouts of a linear mixer whose in_proj gives queries, keys, values and `further`."""
    return {
        "in_proj": head_rows(q=keys, k=keys, v=values, **further),
        "conv": head_rows(conv_q=keys, conv_k=keys, conv_v=values),
        "out_proj": head_columns(o=values),
    }
