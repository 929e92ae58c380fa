"""Mamba-1: the selective state-space scan, with a decay per channel and state."""

# B batch, T tokens, D model width, N channels, S states per channel, R bottleneck of the step

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...kernels.rows import op as rows
from ...search_space.blocks import mamba1 as record
from ..body import Pass
from ..caches import StateCache
from ..parameters import Parameters
from .recurrent import Recurrent, ShortConvolution, slow_dt_bias, zero_padding


class Mamba1(Recurrent):
    """The selective scan of arXiv 2312.00752.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t per channel. A is [N, S]; dt, B
    and C depend on the token, with Jamba's norms (arXiv 2403.19887) under `inner_norms`. The output
    is gated by SiLU(z).
    """

    fields = frozenset(record.Mamba1.model_fields)

    def __init__(self, block: record.Mamba1, params: Parameters) -> None:
        super().__init__((block.d_inner, block.d_state), (block.conv - 1, block.d_inner), params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.conv = ShortConvolution(params)
        self.x_proj = params.linear("x_proj")
        self.dt_proj = params.linear("dt_proj")
        self.dt_bias = slow_dt_bias(params, "dt_bias")
        self.A_log = params.create("A_log", _log_of_state_number, fp32=True)
        self.D = params.constant("D", 1.0)
        if block.inner_norms:
            self.dt_norm, self.b_norm = params.rms_norm("dt_norm"), params.rms_norm("b_norm")
            self.c_norm = params.rms_norm("c_norm")
        self.out_proj = params.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block = self.block
        x_BTN, z_BTN = self.in_proj(x_BTD).chunk(2, -1)
        x_BTN = self.conv(x_BTN, run, cache)
        sizes = [block.dt_rank, block.d_state, block.d_state]
        raw_BTR, B_BTS, C_BTS = self.x_proj(x_BTN).split(sizes, -1)
        if block.inner_norms:
            raw_BTR, B_BTS, C_BTS = self.dt_norm(raw_BTR), self.b_norm(B_BTS), self.c_norm(C_BTS)
        dt_BTN = F.softplus(self.dt_proj(raw_BTR).to(self.fp32_dtype) + self.dt_bias)
        dt_BTN = zero_padding(dt_BTN, run)  # dt = 0 leaves the state as it is
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


def _log_of_state_number(A_NS: Tensor) -> Tensor:
    """log(1), log(2), ... over the states of each channel: the S4D-real initialization."""
    states = torch.arange(1, A_NS.shape[1] + 1, device=A_NS.device, dtype=A_NS.dtype)
    return states.log().expand_as(A_NS).clone()
