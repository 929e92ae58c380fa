"""Mamba-1: the selective scan, a decay for each channel and state."""

# B batch, T tokens, D model width, N channels, S states of a channel, R bottleneck of the step

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...kernels.rows import op as rows
from ...search_space.blocks import mamba1 as record
from ..body import Pass
from ..caches import StateCache
from ..parts import Parts
from .recurrent import Recurrent, ShortConvolution, kept, started_slow


class Mamba1(Recurrent):
    """arXiv 2312.00752, with Jamba's norms on step, B and C where the record has them."""

    fields = frozenset(record.Mamba1.model_fields)

    def __init__(self, block: record.Mamba1, parts: Parts) -> None:
        super().__init__((block.d_inner, block.d_state), (block.conv - 1, block.d_inner), parts)
        self.block = block
        self.in_proj = parts.linear("in_proj")
        self.conv = ShortConvolution(parts)
        self.x_proj = parts.linear("x_proj")
        self.dt_proj = parts.linear("dt_proj")
        self.dt_bias = started_slow(parts, "dt_bias")
        self.A_log = parts.made("A_log", _counting_up, wide=True)
        self.D = parts.filled("D", 1.0)
        if block.inner_norms:
            self.dt_norm, self.b_norm = parts.rms_norm("dt_norm"), parts.rms_norm("b_norm")
            self.c_norm = parts.rms_norm("c_norm")
        self.out_proj = parts.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block = self.block
        x_BTN, z_BTN = self.in_proj(x_BTD).chunk(2, -1)
        x_BTN = self.conv(x_BTN, run, cache)
        sizes = [block.dt_rank, block.d_state, block.d_state]
        raw_BTR, B_BTS, C_BTS = self.x_proj(x_BTN).split(sizes, -1)
        if block.inner_norms:
            raw_BTR, B_BTS, C_BTS = self.dt_norm(raw_BTR), self.b_norm(B_BTS), self.c_norm(C_BTS)
        dt_BTN = kept(
            F.softplus(self.dt_proj(raw_BTR).to(self.wide) + self.dt_bias), run
        )  # a step of 0 is none
        y_BTN, state = recurrent.selective_scan(
            x_BTN,
            dt_BTN,
            -self.A_log.exp(),
            B_BTS,
            C_BTS,
            self.D,
            None if cache is None else cache["state"],
            segment_ids=run.segment_ids_BT,
        )
        if cache is not None:
            cache["state"] = state
        return self.out_proj(rows.swiglu(z_BTN, y_BTN))


def _counting_up(A_NS: Tensor) -> Tensor:
    """The logarithm of 1, 2, ... for the states of each channel, as S4D-real starts them."""
    states = torch.arange(1, A_NS.shape[1] + 1, device=A_NS.device, dtype=A_NS.dtype)
    return states.log().expand_as(A_NS).clone()
