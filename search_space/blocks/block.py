"""Base of block records: weights, cache and operator calls of a block by formula.

A block lists all its parameters by name and shape, and the builder makes exactly these: counts of
parameters, FLOPs and bytes are sums over them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..document import Terse
from ..operators import NumberFormat, Operator, Point
from .heads import HeadLayout

PrecisionRole = Literal[
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
Owner = Literal["block", "use", "first", "later"]
# Routers and gates are small and sensitive: they never leave BF16.
Role = PrecisionRole | Literal["router", "gate"]
SIZE_DIVISOR = 16  # of sizes in proxy models, for tensor cores and FP8


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter tensor.

    `role` is given for matrices that tokens are multiplied with: shape (out features, in
    features), 2 FLOPs per element and token. `copies` is the number of experts in a stacked tensor,
    of which each token uses `active`. There is one tensor per physical block (`owner` "block"), per
    use of it ("use", see `Block.copies`), for the first use in the stack only ("first"), or per
    later use ("later").
    """

    name: str
    shape: tuple[int, ...]
    role: Role | None = None
    copies: int = 1
    active: int = 1
    owner: Owner = "block"

    @property
    def total_count(self) -> int:
        """Elements of all copies."""
        return math.prod(self.shape) * self.copies

    @property
    def active_count(self) -> int:
        """Elements that one token uses."""
        return math.prod(self.shape) * self.active


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Cache of one sequence between decoding steps, in elements.

    `kv_elements` are cached for each of the last `window` tokens (None: all), in the KV format,
    with `kv_scales` fp32 scales per token where that has 8 bits. `compressed_elements` and the
    `index_elements` of an indexer are cached once per `every` tokens, for the whole context.
    A query reads at most `selected` of the cached positions. `state_elements` have the state
    format, `conv_elements` (convolution tails, token shifts) the activation format; both are
    cached once per sequence.
    """

    kv_elements: int = 0
    kv_scales: int = 0
    window: int | None = None
    compressed_elements: int = 0
    index_elements: int = 0
    every: int = 1
    selected: int | None = None
    state_elements: int = 0
    conv_elements: int = 0


class Block(Terse):
    """Base of all block records. A kind is a subclass with its fields and formulas."""

    own_norms: ClassVar[bool] = False
    """Whether the block has norms of its own, so that the stack puts none around it."""
    tp_sharded_dims: ClassVar[tuple[str, ...]] = ()
    """Fields that tensor parallelism divides; none: every device has the whole block."""
    tp_replicable_dims: ClassVar[tuple[str, ...]] = ()
    """Fields that are divided too, but replicated where there are more devices."""

    kind: Any
    """Kind of the block; the further fields depend on it."""
    copies: PositiveInt | None = None
    """Physical blocks that all uses in the stack share in turn (ALBERT); null: one per use."""
    depth_capacity: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the tokens that a router lets take part (mixture of depths, arXiv 2404.02258)."""
    token_merge: int | None = Field(default=None, ge=2)
    """Neighboring tokens that enter as their mean (Hourglass, arXiv 2110.13711)."""

    @model_validator(mode="after")
    def _one_way_to_fewer_tokens(self) -> Self:
        if self.depth_capacity is not None and self.token_merge is not None:
            raise ValueError(
                "depth_capacity and token_merge exclude each other, got "
                f"depth_capacity={self.depth_capacity}, token_merge={self.token_merge}"
            )
        return self

    @property
    def token_fraction(self) -> float:
        """The fraction of the tokens that the block processes."""
        return (self.depth_capacity or 1.0) / (self.token_merge or 1)

    @property
    def letter(self) -> str:
        """The letter of this block in the layer notation."""
        raise NotImplementedError

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """All parameters of the block; the norms around it belong to the stack."""
        raise NotImplementedError

    def head_layout(self) -> dict[str, HeadLayout]:
        """The weights that are made of heads, by name without ".weight"; all others are plain.

        A block need not have every weight that is named here.
        """
        return {}

    def cache(self, d_model: int) -> Cache:
        """The cache of one sequence; by default nothing."""
        return Cache()

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        """The operator calls of a forward pass, projections excluded.

        `kv` and `experts` are the number formats of the KV cache and of the experts.
        """
        raise NotImplementedError

    def operator_flops(self, d_model: int, context: int) -> float:
        """FLOPs of the operator calls for the token that closes a context, projections excluded.

        They are those of a decoding step. A kind overrides this where its calls are priced by a
        formula that differs from the usual count of its FLOPs.
        """
        point = Point(batch=1, tokens=1, context=context)
        calls = self.operators(d_model, point, kv="bf16", experts="bf16")
        return sum(call.flops for call in calls)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        """The fields of this block in a proxy model, those that differ.

        Widths are multiplied by `width_fraction`, windows by `context_fraction`.
        """
        return {}

    def shard(self, devices: int) -> Self:
        """The shard of the block on each of several devices (tensor parallelism).

        Raises ValueError where a sharded size is not divisible.
        """
        sizes = {name: getattr(self, name) for name in self.tp_sharded_dims}
        for name, size in sizes.items():
            if size % devices:
                raise ValueError(
                    f"{devices} devices must divide {name} of {self.kind}, got {name}={size}"
                )
        less = {name: max(1, getattr(self, name) // devices) for name in self.tp_replicable_dims}
        divided = {name: size // devices for name, size in sizes.items()}
        return type(self).model_validate(self.model_dump() | divided | less)

    def to_proxy(self, width_fraction: float, context_fraction: float) -> Self:
        """This block in a proxy model, see proxy.py."""
        fields = self.model_dump() | self.proxy_fields(width_fraction, context_fraction)
        return type(self).model_validate(fields)


def owners(weight: Weight, block: Block, uses: int) -> int:
    """How many tensors there are of a weight of a block that is used `uses` times."""
    match weight.owner:
        case "block":
            return uses if block.copies is None else min(uses, block.copies)
        case "use":
            return uses
        case "first":
            return min(uses, 1)
        case "later":
            return max(0, uses - 1)


def linear(
    name: str,
    out: int,
    into: int,
    role: Role,
    *,
    copies: int = 1,
    active: int = 1,
    owner: Owner = "block",
) -> Weight:
    """The matrix of a projection from `into` to `out` features."""
    return Weight(
        name=f"{name}.weight",
        shape=(out, into),
        role=role,
        copies=copies,
        active=active,
        owner=owner,
    )


def vector(name: str, size: int, *, copies: int = 1, active: int = 1) -> Weight:
    """A vector parameter: a gain, a bias."""
    return Weight(name=name, shape=(size,), copies=copies, active=active)


def biases(sizes: Mapping[str, int]) -> tuple[Weight, ...]:
    """The biases of projections, by name and size."""
    return tuple(vector(f"{name}.bias", size) for name, size in sizes.items())


def make_divisible(exact: float) -> int:
    """The nearest multiple of `SIZE_DIVISOR`, not zero."""
    return max(SIZE_DIVISOR, SIZE_DIVISOR * round(exact / SIZE_DIVISOR))


def grouped(heads: int, shared: int, fraction: float) -> tuple[int, int]:
    """A fraction of the heads in about the same grouping: (query heads, key and value heads)."""
    group = heads // shared
    fewer_shared = max(1, round(shared * fraction))
    fewer_group = max(1, min(group, round(heads * fraction / fewer_shared)))
    return fewer_shared * fewer_group, fewer_shared
