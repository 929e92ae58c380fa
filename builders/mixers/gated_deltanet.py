"""Gated DeltaNet: linear attention with a gated delta rule."""

# B batch, T tokens, D model width, G key heads, H value heads, K key width, V value width

import torch
from torch import Tensor

from ...kernels.rows import op as rows
from ...search_space.blocks import gated_deltanet as record
from ..body import Pass
from ..caches import StateCache
from ..parameters import Parameters
from .recurrent import Recurrent, ShortConvolution, dt_and_decay, l2_normalized, slow_dt_bias


class GatedDeltaNet(Recurrent):
    """The gated delta rule (arXiv 2412.06464).

    S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t. S is [K, V] per
    value head; q and k have length one and q is scaled by K^-1/2; a_t is a scalar per head (1
    unless `gated`). An RMSNorm gated by z follows, then the output projection.
    """

    fields = frozenset(record.GatedDeltaNet.model_fields)

    def __init__(self, block: record.GatedDeltaNet, params: Parameters) -> None:
        state = (block.v_heads, block.k_head_dim, block.v_head_dim)
        super().__init__(state, (block.conv - 1, block.conv_width), params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.gate_proj = params.linear("gate_proj")
        self.conv = ShortConvolution(params)
        if block.gated:
            self.A_log = params.uniform("A_log", 1, 16, fp32=True, then=torch.log)
            self.dt_bias = slow_dt_bias(params, "dt_bias")
        self.norm = params.rms_norm("norm")
        self.out_proj = params.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block = self.block
        qkv, z = self.in_proj(x_BTD).split([block.conv_width, block.v_width], -1)
        qkv = self.conv(qkv, run, cache)
        q, k, v = qkv.split([block.k_width, block.k_width, block.v_width], -1)
        q_BTGK, k_BTGK = (l2_normalized(x.unflatten(-1, (block.k_heads, -1))) for x in (q, k))
        v_BTHV = v.unflatten(-1, (block.v_heads, -1))
        raw = self.gate_proj(x_BTD).to(self.fp32_dtype)
        beta_BTH, decay_BTH = raw[..., : block.v_heads].sigmoid(), None
        if block.negative_eigenvalues:
            beta_BTH = 2 * beta_BTH
        if block.gated:
            _, decay_BTH = dt_and_decay(raw[..., block.v_heads :], self.A_log, self.dt_bias)
        scale = block.k_head_dim**-0.5
        o_BTHV = self.recur(q_BTGK, k_BTGK, v_BTHV, decay_BTH, beta_BTH, run, cache, scale=scale)
        z_BTHV = z.unflatten(-1, (block.v_heads, -1))
        gated = rows.gated_rms_norm(
            o_BTHV, z_BTHV, self.norm.weight, self.norm.eps, gate_first=False
        )
        return self.out_proj(gated.flatten(-2))
