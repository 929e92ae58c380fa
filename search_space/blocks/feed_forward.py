"""Dense feed-forward."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ..operators import NumberFormat, Operator, Point, Rows
from .block import Block, Role, Weight, linear, make_divisible, vector

Activation = Literal[
    "swiglu", "geglu", "geglu_tanh", "swiglu_oai", "situ", "gelu", "silu", "relu", "relu2"
]
UNGATED = frozenset({"gelu", "silu", "relu", "relu2"})


class FeedForward(Block):
    """Dense feed-forward, gated (GLU family, arXiv 2002.05202) or not, by its activation."""

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("width",)

    kind: Literal["ffn"] = "ffn"
    width: PositiveInt
    """Hidden features."""
    activation: Activation = "swiglu"
    """Activation. `geglu_tanh` is GeGLU by the tanh formula; `swiglu_oai` is gpt-oss's, (up + 1) *
    gate * sigmoid(1.702 * gate), clamped at 7; `situ` is Kimi-K3's; gelu, silu, relu and relu2 have
    no gate."""
    bias: bool = False
    """Biases of all projections."""
    limit: float | None = Field(default=None, gt=0)
    """Bound that gate and up projections are clamped to."""

    @property
    def letter(self) -> str:
        return "-"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return mlp("", self.width, d_model, self.activation, "ffn.up", "ffn.down", bias=self.bias)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        inputs = len(up_projections(self.activation))
        yield Rows(rows=point.rows, elements=(inputs + 1) * self.width)

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        return {"width": make_divisible(self.width * width_fraction)}


def up_projections(activation: Activation) -> tuple[str, ...]:
    """The names of the projections into the hidden features."""
    return ("up_proj",) if activation in UNGATED else ("gate_proj", "up_proj")


def mlp(
    prefix: str,
    width: int,
    d_model: int,
    activation: Activation,
    up: Role,
    down: Role,
    *,
    copies: int = 1,
    active: int = 1,
    bias: bool = False,
) -> tuple[Weight, ...]:
    """The matrices and biases of one feed-forward, or of a stack of `copies` experts."""
    into = up_projections(activation)
    matrices = (
        *(linear(prefix + name, width, d_model, up, copies=copies, active=active) for name in into),
        linear(f"{prefix}down_proj", d_model, width, down, copies=copies, active=active),
    )
    if not bias:
        return matrices
    return (
        *matrices,
        *(vector(f"{prefix}{name}.bias", width, copies=copies, active=active) for name in into),
        vector(f"{prefix}down_proj.bias", d_model, copies=copies, active=active),
    )
