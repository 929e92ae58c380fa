"""Mamba-2: the state-space mixer with one scalar decay a head."""

# B batch, T tokens, D model width, G groups of heads, H heads, K state width, V head width

import torch
from torch import Tensor

from ...kernels.rows import op as rows
from ...search_space.blocks import mamba2 as record
from ..body import Pass
from ..caches import StateCache
from ..parts import Parts
from .recurrent import Recurrent, ShortConvolution, rates, started_slow


class Mamba2(Recurrent):
    """SSD (arXiv 2405.21060) is the linear recurrence with q = C, k = B, v = dt x, decay = dt A."""

    fields = frozenset(record.Mamba2.model_fields)

    def __init__(self, block: record.Mamba2, parts: Parts) -> None:
        state = (block.heads, block.d_state, block.head_dim)
        super().__init__(state, (block.conv - 1, block.conv_width), parts)
        self.block = block
        self.in_proj = parts.linear("in_proj")
        self.conv = ShortConvolution(parts)
        self.A_log = parts.uniform("A_log", 1, 16, wide=True, then=torch.log)
        self.dt_bias = started_slow(parts, "dt_bias")
        self.D = parts.filled("D", 1.0)
        self.norm = parts.rms_norm("norm") if block.gated_norm else None
        self.out_proj = parts.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block, shared = self.block, self.block.groups * self.block.d_state
        z, xBC, raw_BTH = self.in_proj(x_BTD).split(
            [block.d_inner, block.conv_width, block.heads], -1
        )
        xBC = self.conv(xBC, run, cache)
        x, k, q = xBC.split([block.d_inner, shared, shared], -1)
        x_BTHV = x.unflatten(-1, (block.heads, block.head_dim))
        k_BTGK, q_BTGK = (part.unflatten(-1, (block.groups, block.d_state)) for part in (k, q))
        dt_BTH, decay_BTH = rates(raw_BTH, self.A_log, self.dt_bias)
        v_BTHV = (dt_BTH[..., None] * x_BTHV).to(x_BTD.dtype)
        y_BTHV = self.recur(q_BTGK, k_BTGK, v_BTHV, decay_BTH, None, run, cache)
        y = (y_BTHV + self.D[:, None] * x_BTHV).to(x_BTD.dtype).flatten(-2)
        if self.norm is None:
            return self.out_proj(rows.swiglu(z, y))
        gated = rows.gated_rms_norm(
            y, z, self.norm.weight, self.norm.eps, gate_first=True, groups=block.groups
        )
        return self.out_proj(gated)
