"""Kimi Delta Attention: the gated delta rule with a decay per key channel."""

# B batch, T tokens, D model width, H heads, K key width, V value width

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.rows import op as rows
from ...search_space.blocks import kda as record
from ..body import Pass
from ..caches import StateCache
from ..parameters import Parameters
from .recurrent import Recurrent, ShortConvolution, l2_normalized, slow_dt_bias


class KDA(Recurrent):
    """Kimi Linear (arXiv 2510.26692): the delta rule of GatedDeltaNet with a decay per key channel.

    S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t, S [K, V] per
    head, with log a_t = -e^A softplus(W_b W_a x + b), or gate_lower_bound * sigmoid(e^A (...)). An
    RMSNorm with a sigmoid gate follows.
    """

    fields = frozenset(record.KDA.model_fields)

    def __init__(self, block: record.KDA, params: Parameters) -> None:
        state = (block.heads, block.k_head_dim, block.v_head_dim)
        super().__init__(state, (block.conv - 1, block.conv_width), params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.conv = ShortConvolution(params)
        self.decay_a_proj = params.linear("decay_a_proj")
        self.decay_b_proj = params.linear("decay_b_proj")
        self.A_log = params.uniform("A_log", 1, 16, fp32=True, then=torch.log)
        self.dt_bias = slow_dt_bias(params, "dt_bias")
        self.beta_proj = params.linear("beta_proj")
        if block.full_rank_gate:
            self.gate_proj = params.linear("gate_proj")
        else:
            self.gate_a_proj = params.linear("gate_a_proj")
            self.gate_b_proj = params.linear("gate_b_proj")
        self.norm = params.rms_norm("norm")
        self.out_proj = params.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block, heads = self.block, (self.block.heads, -1)
        qkv = self.conv(self.in_proj(x_BTD), run, cache)
        q, k, v = qkv.split([block.k_width, block.k_width, block.v_width], -1)
        q_BTHK, k_BTHK = (
            l2_normalized(q.unflatten(-1, heads)),
            l2_normalized(k.unflatten(-1, heads)),
        )
        beta_BTH = self.beta_proj(x_BTD).to(self.fp32_dtype).sigmoid()
        o_BTHV = self.recur(
            q_BTHK,
            k_BTHK,
            v.unflatten(-1, heads),
            self._decay(x_BTD),
            beta_BTH,
            run,
            cache,
            scale=block.k_head_dim**-0.5,
        )
        gated = rows.gated_rms_norm(
            o_BTHV,
            self._gate(x_BTD).unflatten(-1, heads),
            self.norm.weight,
            self.norm.eps,
            activation="sigmoid",
            gate_first=False,
        )
        return self.out_proj(gated.flatten(-2))

    def _decay(self, x_BTD: Tensor) -> Tensor:
        raw = self.decay_b_proj(self.decay_a_proj(x_BTD)).to(self.fp32_dtype) + self.dt_bias
        raw_BTHK, rate_H1 = raw.unflatten(-1, (self.block.heads, -1)), self.A_log.exp()[:, None]
        if self.block.gate_lower_bound is not None:
            return self.block.gate_lower_bound * (rate_H1 * raw_BTHK).sigmoid()
        return -rate_H1 * F.softplus(raw_BTHK)

    def _gate(self, x_BTD: Tensor) -> Tensor:
        if self.block.full_rank_gate:
            return self.gate_proj(x_BTD)
        return self.gate_b_proj(self.gate_a_proj(x_BTD))
