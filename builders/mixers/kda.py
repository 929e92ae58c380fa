"""Kimi Delta Attention: the delta rule with a decay for each key channel."""

# B batch, T tokens, D model width, H heads, K key width, V value width

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.recurrent.configs import MIN_LOG_DECAY_PER_CHANNEL
from ...kernels.rows import op as rows
from ...search_space.blocks import kda as record
from ..body import Pass
from ..caches import StateCache
from ..parts import Parts
from .recurrent import Recurrent, ShortConvolution, started_slow, unit


class KDA(Recurrent):
    """arXiv 2510.26692. An unbounded decay is held at what the kernels' exponents can carry."""

    fields = frozenset(record.KDA.model_fields)

    def __init__(self, block: record.KDA, parts: Parts) -> None:
        state = (block.heads, block.k_head_dim, block.v_head_dim)
        super().__init__(state, (block.conv - 1, block.conv_width), parts)
        self.block = block
        self.in_proj = parts.linear("in_proj")
        self.conv = ShortConvolution(parts)
        self.decay_a_proj = parts.linear("decay_a_proj")
        self.decay_b_proj = parts.linear("decay_b_proj")
        self.A_log = parts.uniform("A_log", 1, 16, wide=True, then=torch.log)
        self.dt_bias = started_slow(parts, "dt_bias")
        self.beta_proj = parts.linear("beta_proj")
        if block.full_rank_gate:
            self.gate_proj = parts.linear("gate_proj")
        else:
            self.gate_a_proj = parts.linear("gate_a_proj")
            self.gate_b_proj = parts.linear("gate_b_proj")
        self.norm = parts.rms_norm("norm")
        self.out_proj = parts.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block, heads = self.block, (self.block.heads, -1)
        qkv = self.conv(self.in_proj(x_BTD), run, cache)
        q, k, v = qkv.split([block.k_width, block.k_width, block.v_width], -1)
        q_BTHK, k_BTHK = unit(q.unflatten(-1, heads)), unit(k.unflatten(-1, heads))
        beta_BTH = self.beta_proj(x_BTD).to(self.wide).sigmoid()
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
        raw = self.decay_b_proj(self.decay_a_proj(x_BTD)).to(self.wide) + self.dt_bias
        raw_BTHK, rate_H1 = raw.unflatten(-1, (self.block.heads, -1)), self.A_log.exp()[:, None]
        if self.block.gate_lower_bound is not None:
            return self.block.gate_lower_bound * (rate_H1 * raw_BTHK).sigmoid()
        return (-rate_H1 * F.softplus(raw_BTHK)).clamp(min=MIN_LOG_DECAY_PER_CHANNEL)

    def _gate(self, x_BTD: Tensor) -> Tensor:
        if self.block.full_rank_gate:
            return self.gate_proj(x_BTD)
        return self.gate_b_proj(self.gate_a_proj(x_BTD))
