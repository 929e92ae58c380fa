"""Gated short convolution."""

# B batch, T tokens, D model width

import torch
from torch import Tensor

from ...search_space.blocks import short_conv as record
from ..body import Body, Pass
from ..caches import StateCache
from ..parameters import Parameters
from .recurrent import ShortConvolution


class ShortConv(Body):
    """LFM2: y = W_out (C * conv(B * x)), with B, C and x projections of the input.

    `conv` is causal and depthwise over the last few tokens, without an activation.
    """

    fields = frozenset(record.ShortConv.model_fields)

    def __init__(self, block: record.ShortConv, params: Parameters) -> None:
        super().__init__()
        self.in_proj = params.linear("in_proj")
        self.conv = ShortConvolution(params, activation=None)
        self.out_proj = params.linear("out_proj", to_residual=True)
        self.tail_shape = (block.conv - 1, self.conv.weight.shape[0])
        self.device, self.dtype = params.device, params.dtype

    def new_cache(self, batch: int) -> StateCache:
        tail = torch.zeros(batch, *self.tail_shape, device=self.device, dtype=self.dtype)
        return StateCache(tail=tail)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        B_BTD, C_BTD, x_BTD = self.in_proj(x_BTD).chunk(3, -1)
        return self.out_proj(C_BTD * self.conv(B_BTD * x_BTD, run, cache))
