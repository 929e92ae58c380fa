"""RG-LRU: Griffin's gated linear recurrence."""

# B batch, T tokens, D model width, N channels, O blocks of the gates, S channels of a block

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...search_space.blocks import rglru as record
from ..body import Pass
from ..caches import StateCache
from ..parts import Parts, Projection
from .recurrent import Recurrent, ShortConvolution, kept

SHARPNESS = 8.0  # of the recurrent gate, arXiv 2402.19427 section 2.4
SMALLEST_ROOT = 1e-6  # under the root, whose slope has no bound at zero


class RGLRU(Recurrent):
    """arXiv 2402.19427: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t), a_t = e^{-8 r_t softplus(L)}.

    The first token of a document enters whole, as nothing was there to decay.
    """

    fields = frozenset(record.RGLRU.model_fields)

    def __init__(self, block: record.RGLRU, parts: Parts) -> None:
        super().__init__((block.width,), (block.conv - 1, block.width), parts)
        self.block = block
        self.y_proj = parts.linear("y_proj")
        self.x_proj = parts.linear("x_proj")
        self.conv = ShortConvolution(parts, activation=None)
        self.input_gate = BlockDiagonal(*parts.matrices("input_gate"))
        self.recurrent_gate = BlockDiagonal(*parts.matrices("recurrent_gate"))
        # what a channel keeps is uniform in 0.9 ... 0.999 at an open gate, as the paper starts it
        self.Lambda = parts.uniform("Lambda", 0.9, 0.999, wide=True, then=_rate_of)
        self.out_proj = parts.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        y_BTN = F.gelu(self.y_proj(x_BTD), approximate="tanh")
        x_BTN = self.conv(self.x_proj(x_BTD), run, cache)
        gate_BTN = self.recurrent_gate(x_BTN).to(self.wide).sigmoid()
        decay_BTN = -SHARPNESS * gate_BTN * F.softplus(self.Lambda)
        entering_BTN = self.input_gate(x_BTN).sigmoid() * x_BTN
        size_BTN = (1 - (2 * decay_BTN).exp()).clamp(min=SMALLEST_ROOT).sqrt()
        first_BT1 = (run.positions_BT == 0)[..., None]
        entering_BTN = entering_BTN * torch.where(first_BT1, 1.0, size_BTN).to(x_BTN.dtype)
        h_BTN, state = recurrent.channel_scan(
            kept(entering_BTN, run),
            kept(decay_BTN, run),
            None if cache is None else cache["state"],
            segment_ids=run.segment_ids_BT,
        )
        if cache is not None:
            cache["state"] = state
        return self.out_proj(h_BTN * y_BTN)


class BlockDiagonal(Projection):
    """A square matrix of blocks of equal size along its diagonal."""

    def forward(self, x_BTN: Tensor) -> Tensor:
        x_BTOS, weight_OSS = self.factors(x_BTN.unflatten(-1, (len(self.weight), -1)))
        y_BTOS = torch.einsum("btoi,oji->btoj", x_BTOS, weight_OSS)
        return (y_BTOS if self.bias is None else y_BTOS + self.bias).flatten(-2)


def _rate_of(keeps: Tensor) -> Tensor:
    """L with e^{-8 softplus(L)} = keeps."""
    return torch.log(torch.expm1(-keeps.log() / SHARPNESS))
