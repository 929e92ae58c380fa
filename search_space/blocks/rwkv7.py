"""RWKV-7: a time mixer with a generalized delta rule, and its channel mixer."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Owner, Weight, biases, linear, make_divisible, vector
from .heads import HeadLayout, head_columns, head_rows
from .recurrent import recurrence


class RWKV7(Block):
    """Time mixer of RWKV-7 "Goose" (arXiv 2503.14456): states of head_dim x head_dim.

    A token shift mixes each input with the one before it. Low-rank projections give decay,
    in-context learning rate, value residual and output gate. The first of these blocks in the stack
    makes the values that later ones mix in, so it has no value residual. The low-rank projections
    but the gate's, and the group norm, have biases.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["rwkv7"] = "rwkv7"
    heads: PositiveInt
    """Heads."""
    head_dim: PositiveInt
    """Dimension of a head."""
    decay_rank: PositiveInt
    """Rank of the projection to the decay."""
    a_rank: PositiveInt
    """Rank of the projection to the in-context learning rate."""
    v_rank: PositiveInt
    """Rank of the projection to the value residual."""
    gate_rank: PositiveInt
    """Rank of the projection to the output gate."""

    @property
    def letter(self) -> str:
        return "R"

    @property
    def width(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        width = self.width
        return (
            *(vector(f"shift.{of}", d_model) for of in ("r", "w", "k", "v", "a", "g")),
            *(linear(f"{of}_proj", width, d_model, "mixer.in") for of in ("r", "k", "v")),
            *self._offset("decay", self.decay_rank, d_model, "block"),
            *self._offset("a", self.a_rank, d_model, "block"),
            *self._offset("v", self.v_rank, d_model, "later"),
            linear("gate_a_proj", self.gate_rank, d_model, "gate"),
            linear("gate_b_proj", width, self.gate_rank, "gate"),
            *(vector(name, width) for name in ("k_k", "k_a", "r_k")),
            vector("norm.weight", width),
            *biases({"norm": width}),
            linear("out_proj", d_model, width, "mixer.out"),
        )

    def _offset(self, name: str, rank: int, d_model: int, owner: Owner) -> tuple[Weight, ...]:
        """A low-rank projection with a bias."""
        return (
            linear(f"{name}_a_proj", rank, d_model, "gate", owner=owner),
            linear(f"{name}_b_proj", self.width, rank, "gate", owner=owner),
            Weight(name=f"{name}_b_proj.bias", shape=(self.width,), owner=owner),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        size = (self.heads, self.head_dim)
        parts = {"r_proj": "q", "k_proj": "k", "v_proj": "v", "gate_b_proj": "z"}
        own = ("decay_b_proj", "a_b_proj", "v_b_proj", "k_k", "k_a", "r_k", "norm")
        rows = parts | {name: name for name in own}
        return {name: head_rows(**{part: size}) for name, part in rows.items()} | {
            "out_proj": head_columns(o=size)
        }

    def cache(self, d_model: int) -> Cache:
        return Cache(state_elements=self.heads * self.head_dim**2, conv_elements=d_model)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield Rows(rows=point.rows, elements=7 * d_model)  # six shifted inputs
        yield recurrence(
            point,
            k_heads=self.heads,
            heads=self.heads,
            k_dim=self.head_dim,
            v_dim=self.head_dim,
            delta=True,
            writes=2,
        )
        yield Rows(rows=point.rows, elements=8 * self.width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        return {
            "heads": max(1, round(self.width * width_fraction / head_dim)),
            "head_dim": head_dim,
            "decay_rank": make_divisible(self.decay_rank * width_fraction),
            "a_rank": make_divisible(self.a_rank * width_fraction),
            "v_rank": make_divisible(self.v_rank * width_fraction),
            "gate_rank": make_divisible(self.gate_rank * width_fraction),
        }


class RWKV7ChannelMix(Block):
    """Channel mixer of RWKV-7: squared ReLU of a token mixed with the one before it."""

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("width",)

    kind: Literal["rwkv7_cmix"] = "rwkv7_cmix"
    width: PositiveInt
    """Hidden features."""

    @property
    def letter(self) -> str:
        return "r"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            vector("shift.k", d_model),
            linear("up_proj", self.width, d_model, "ffn.up"),
            linear("down_proj", d_model, self.width, "ffn.down"),
        )

    def cache(self, d_model: int) -> Cache:
        return Cache(conv_elements=d_model)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield Rows(rows=point.rows, elements=2 * d_model)
        yield Rows(rows=point.rows, elements=2 * self.width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        return {"width": make_divisible(self.width * width_fraction)}
