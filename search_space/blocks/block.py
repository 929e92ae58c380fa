"""The contract of a block: a record that knows its weights, its cache and its mixing work.

A new block kind is one file here (record and formulas) and one module in `builders`. Everything
else follows from the weights: parameters, FLOPs, bytes and matrix shapes are sums over them.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ..document import Record

Fp8Role = Literal[
    "attention.qkv",
    "attention.out",
    "mixer.in",
    "mixer.out",
    "ffn.up",
    "ffn.down",
    "experts",
    "lm_head",
    "kv_cache",
]
Role = Fp8Role | Literal["gate", "router"]  # small projections that stay in BF16


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter tensor. `name` and element count equal those of the built module.

    `role` is given for matrices that a token is multiplied with: shape (out features, in
    features), 2 FLOPs an element and token. `copies` is the expert count of a stacked tensor, of
    which a token meets `active`.
    """

    name: str
    shape: tuple[int, ...]
    role: Role | None = None
    copies: int = 1
    active: int = 1

    @property
    def total_count(self) -> int:
        return math.prod(self.shape) * self.copies

    @property
    def active_count(self) -> int:
        return math.prod(self.shape) * self.active


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What one sequence keeps between decoding steps.

    `kv_elements` are held for each of the last `window` tokens (for every token where None), in
    the KV dtype; `kv_scales` fp32 scales a token come with an FP8 cache. `state_elements` are
    fp32, `conv_elements` have the activation dtype; both are held once a sequence.
    """

    kv_elements: int = 0
    kv_scales: int = 0
    window: int | None = None
    state_elements: int = 0
    conv_elements: int = 0


class Block(Record):
    """Base of all block records; each kind answers these three questions by formula."""

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Every parameter of the block, its norms around the residual excluded."""
        raise NotImplementedError

    def cache(self) -> Cache:
        """What one sequence caches; nothing unless a kind says so."""
        return Cache()

    def mixing_flops(self, visible: float) -> float:
        """FLOPs a token beyond its weights, when it sees `visible` cached positions."""
        return 0.0


def linear(
    name: str, out: int, into: int, role: Role, *, copies: int = 1, active: int = 1
) -> Weight:
    """The weight of a projection from `into` to `out` features."""
    return Weight(name=f"{name}.weight", shape=(out, into), role=role, copies=copies, active=active)


def vector(name: str, size: int) -> Weight:
    """A gain, a bias or another parameter that is no matrix."""
    return Weight(name=name, shape=(size,))
