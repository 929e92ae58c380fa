"""The dense feed-forward, and its activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.experts.groups import Groups
from ..kernels.rows import op as rows
from ..kernels.rows.reference import Activation as Gate
from ..search_space.blocks import feed_forward as record
from .body import Body, Pass
from .layers import Projection
from .parameters import Parameters

GATES: dict[record.Activation, Gate] = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "swiglu_oai": "oai",
}
SITU_GATE, SITU_UP = 4.0, 25.0  # soft bounds of gate and up in Kimi-K3


class MLP(Body):
    """y = W_down (act(W_gate x) * W_up x), or W_down act(W_up x) for ungated activations.

    `make` creates the projections: of one feed-forward, or stacked ones of all experts, whose
    `feed` takes rows sorted by expert and their groups.
    """

    gate_proj: Projection
    up_proj: Projection
    down_proj: Projection

    def __init__(
        self,
        activation: record.Activation,
        limit: float | None,
        make: Callable[..., Projection],
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.activation: record.Activation = activation
        self.limit = limit
        if activation not in record.UNGATED:
            self.gate_proj = make(f"{prefix}gate_proj")
        self.up_proj = make(f"{prefix}up_proj")
        self.down_proj = make(f"{prefix}down_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: Any = None) -> Tensor:
        return self.feed(x_BTD)

    def feed(self, x: Tensor, *groups: Groups) -> Tensor:
        """y [..., D] of x [..., D]."""
        up = self.up_proj(x, *groups)
        if self.activation in record.UNGATED:
            return self.down_proj(ungated_activation(self.activation, up), *groups)
        gate = self.gate_proj(x, *groups)
        if self.activation == "situ":
            hidden = situ(gate, up)
        else:
            hidden = rows.glu(gate, up, GATES[self.activation], self.limit)
        return self.down_proj(hidden, *groups)


class FeedForward(MLP):
    """The dense feed-forward of a block (SwiGLU: arXiv 2002.05202)."""

    fields = frozenset(record.FeedForward.model_fields)

    def __init__(self, block: record.FeedForward, params: Parameters) -> None:
        super().__init__(block.activation, block.limit, params.linear)


def ungated_activation(activation: record.Activation, up: Tensor) -> Tensor:
    """act(up) for the activations that have no gate."""
    match activation:
        case "relu2":
            return rows.relu2(up)
        case "relu":
            return F.relu(up)
        case "gelu":
            return F.gelu(up)
        case _:
            return F.silu(up)


def situ(gate: Tensor, up: Tensor) -> Tensor:
    """4 tanh(gate / 4) sigmoid(gate) * 25 tanh(up / 25) (Kimi-K3)."""
    fp32 = torch.promote_types(gate.dtype, torch.float32)
    g, u = gate.to(fp32), up.to(fp32)
    bounded = SITU_GATE * torch.tanh(g / SITU_GATE) * g.sigmoid()
    return (bounded * SITU_UP * torch.tanh(u / SITU_UP)).to(gate.dtype)
