"""RG-LRU: the real-gated linear recurrent unit of Griffin."""

# B batch, T tokens, D model width, N channels, O blocks of the gates, S channels per block

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...search_space.blocks import rglru as record
from ..body import Pass
from ..caches import StateCache
from ..layers import Projection
from ..parameters import Parameters
from .recurrent import Recurrent, ShortConvolution, zero_padding

GATE_POWER = 8.0  # c of arXiv 2402.19427, section 2.4
SMALLEST_RADICAND = 1e-6  # the gradient of a square root is unbounded at 0


class RGLRU(Recurrent):
    """Griffin (arXiv 2402.19427): h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t) per channel.

    a_t = exp(-8 r_t softplus(Lambda)), with block-diagonal sigmoid gates r_t and i_t of x_t, which
    comes out of a short convolution. The output is multiplied by GELU(W_y x). The first token of
    a document enters with factor 1, as in the reference code.
    """

    fields = frozenset(record.RGLRU.model_fields)

    def __init__(self, block: record.RGLRU, params: Parameters) -> None:
        super().__init__((block.width,), (block.conv - 1, block.width), params)
        self.block = block
        self.y_proj = params.linear("y_proj")
        self.x_proj = params.linear("x_proj")
        self.conv = ShortConvolution(params, activation=None)
        self.input_gate = BlockDiagonal(*params.projection("input_gate"))
        self.recurrent_gate = BlockDiagonal(*params.projection("recurrent_gate"))
        # a_t at r_t = 1 starts uniform in [0.9, 0.999), as in the paper
        self.Lambda = params.uniform("Lambda", 0.9, 0.999, fp32=True, then=_lambda_of)
        self.out_proj = params.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        y_BTN = F.gelu(self.y_proj(x_BTD), approximate="tanh")
        x_BTN = self.conv(self.x_proj(x_BTD), run, cache)
        gate_BTN = self.recurrent_gate(x_BTN).to(self.fp32_dtype).sigmoid()
        decay_BTN = -GATE_POWER * gate_BTN * F.softplus(self.Lambda)
        entering_BTN = self.input_gate(x_BTN).sigmoid() * x_BTN
        size_BTN = (1 - (2 * decay_BTN).exp()).clamp(min=SMALLEST_RADICAND).sqrt()
        first_BT1 = (run.positions_BT == 0)[..., None]
        entering_BTN = entering_BTN * torch.where(first_BT1, 1.0, size_BTN).to(x_BTN.dtype)
        h_BTN, state = recurrent.channel_scan(
            zero_padding(entering_BTN, run),
            zero_padding(decay_BTN, run),
            None if cache is None else cache["state"],
            segment_ids=run.segment_ids_BT,
        )
        if cache is not None:
            cache["state"] = state
        return self.out_proj(h_BTN * y_BTN)


class BlockDiagonal(Projection):
    """A block-diagonal square matrix and a bias; weight_OSS, blocks of equal size."""

    def forward(self, x_BTN: Tensor) -> Tensor:
        x_BTOS, weight_OSS = self.factors(x_BTN.unflatten(-1, (len(self.weight), -1)))
        y_BTOS = torch.einsum("btoi,oji->btoj", x_BTOS, weight_OSS)
        return (y_BTOS if self.bias is None else y_BTOS + self.bias).flatten(-2)


def _lambda_of(a: Tensor) -> Tensor:
    """Lambda with exp(-8 softplus(Lambda)) = a."""
    return torch.log(torch.expm1(-a.log() / GATE_POWER))
