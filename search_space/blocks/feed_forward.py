"""Dense feed-forward: every token meets every weight."""

from typing import Literal

from pydantic import PositiveInt

from .block import Block, Role, Weight, linear

Activation = Literal["swiglu", "geglu", "relu2"]


class FeedForward(Block):
    """`width` hidden features; SwiGLU and GeGLU (arXiv 2002.05202) have a gate, squared ReLU none."""

    kind: Literal["ffn"] = "ffn"
    width: PositiveInt
    activation: Activation = "swiglu"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return mlp("", self.width, d_model, self.activation, "ffn.up", "ffn.down")


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
) -> tuple[Weight, ...]:
    """The matrices of one feed-forward, or of a stack of `copies` experts."""
    into = ("up_proj",) if activation == "relu2" else ("gate_proj", "up_proj")
    return (
        *(linear(prefix + name, width, d_model, up, copies=copies, active=active) for name in into),
        linear(f"{prefix}down_proj", d_model, width, down, copies=copies, active=active),
    )
