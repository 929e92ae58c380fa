"""Mamba-2: the state-space mixer with one scalar decay per head."""

# B batch, T tokens, D model width, G groups of heads, H heads, K state width, V head width

import torch
from torch import Tensor

from ...kernels.rows import op as rows
from ...search_space.blocks import mamba2 as record
from ..body import Pass
from ..caches import StateCache
from ..parameters import Parameters
from .recurrent import Recurrent, ShortConvolution, dt_and_decay, slow_dt_bias


class Mamba2(Recurrent):
    """State space duality (SSD, arXiv 2405.21060).

    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T, y_t = S_t^T C_t + D x_t per head: the linear
    recurrence with q = C, k = B, v = dt x and a scalar decay dt A; S is [K, V]. The output is gated
    by SiLU(z), with an RMSNorm under `gated_norm`.
    """

    fields = frozenset(record.Mamba2.model_fields)

    def __init__(self, block: record.Mamba2, params: Parameters) -> None:
        state = (block.heads, block.d_state, block.head_dim)
        super().__init__(state, (block.conv - 1, block.conv_width), params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.conv = ShortConvolution(params)
        self.A_log = params.uniform("A_log", 1, 16, fp32=True, then=torch.log)
        self.dt_bias = slow_dt_bias(params, "dt_bias")
        self.D = params.constant("D", 1.0)
        self.norm = params.rms_norm("norm") if block.gated_norm else None
        self.out_proj = params.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block, shared = self.block, self.block.groups * self.block.d_state
        z, xBC, raw_BTH = self.in_proj(x_BTD).split(
            [block.d_inner, block.conv_width, block.heads], -1
        )
        xBC = self.conv(xBC, run, cache)
        x, k, q = xBC.split([block.d_inner, shared, shared], -1)
        x_BTHV = x.unflatten(-1, (block.heads, block.head_dim))
        k_BTGK, q_BTGK = (part.unflatten(-1, (block.groups, block.d_state)) for part in (k, q))
        dt_BTH, decay_BTH = dt_and_decay(raw_BTH, self.A_log, self.dt_bias)
        v_BTHV = (dt_BTH[..., None] * x_BTHV).to(x_BTD.dtype)
        y_BTHV = self.recur(q_BTGK, k_BTGK, v_BTHV, decay_BTH, None, run, cache)
        y = (y_BTHV + self.D[:, None] * x_BTHV).to(x_BTD.dtype).flatten(-2)
        if self.norm is None:
            return self.out_proj(rows.swiglu(z, y))
        gated = rows.gated_rms_norm(
            y, z, self.norm.weight, self.norm.eps, gate_first=True, groups=block.groups
        )
        return self.out_proj(gated)
