"""Linear attention with decay: lightning attention, retention, gated linear attention."""

# B batch, T tokens, D model width, G key heads, H heads, K key width, V value width

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.rows import op as rows
from ...search_space.blocks import gla, lightning, retention
from ...search_space.blocks.rope import Rope
from ..body import Pass
from ..caches import StateCache
from ..layers import rms_normalized
from ..parameters import Parameters
from ..positions import apply_rope
from .recurrent import Recurrent, ShortConvolution

LIGHTNING_EPS = 1e-6  # of the output norm; the other norms of MiniMax-01 have 1e-5
GLA_TEMPERATURE = 16.0  # tau of arXiv 2312.06635, section 4.3


class Lightning(Recurrent):
    """Lightning attention (arXiv 2405.17381) as in MiniMax-01 (arXiv 2501.08313).

    S_t = e^{-s_h} S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, with SiLU on q, k, v and a fixed slope
    s_h = 2^{-8h/H} (1 - l/(L-1)) for head h of layer l of L; then RMSNorm and a sigmoid gate.
    """

    fields = frozenset(lightning.Lightning.model_fields)

    def __init__(self, block: lightning.Lightning, params: Parameters) -> None:
        super().__init__((block.heads, block.head_dim, block.head_dim), None, params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.gate_proj = params.linear("gate_proj")
        self.norm = params.rms_norm("norm", LIGHTNING_EPS)
        self.out_proj = params.linear("out_proj", to_residual=True)
        head_H = torch.arange(1, block.heads + 1, dtype=torch.float64)
        depth = 1 - params.layer / (params.num_layers - 1 + 1e-5) + 1e-5
        slope_H = 2.0 ** (-8 * head_H / block.heads) * depth
        self.register_buffer(
            "decay_H", -slope_H.to(params.device, params.fp32_dtype), persistent=False
        )

    decay_H: Tensor

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        qkv = F.silu(self.in_proj(x_BTD)).unflatten(-1, (self.block.heads, -1))
        q_BTHK, k_BTHK, v_BTHK = (x.contiguous() for x in qkv.chunk(3, -1))  # interleaved by head
        o_BTHK = self.recur(q_BTHK, k_BTHK, v_BTHK, self.decay_H, None, run, cache)
        return self.out_proj(self.gate_proj(x_BTD).sigmoid() * self.norm(o_BTHK.flatten(-2)))


class Retention(Recurrent):
    """RetNet (arXiv 2307.08621): S_t = g_h S_{t-1} + k_t v_t^T, o_t = S_t^T q_t.

    The decay of head h = 0, 1, ... is g_h = 1 - 2^{-5-h}; S is [K, V] per head.
    Queries and keys carry a rotary embedding, q is scaled by K^-1/2; an RMSNorm per head without
    weight and a SwiGLU gate follow.
    """

    fields = frozenset(retention.Retention.model_fields)

    def __init__(self, block: retention.Retention, params: Parameters) -> None:
        super().__init__((block.heads, block.k_head_dim, block.v_head_dim), None, params)
        self.block, self.norm_eps = block, params.norm.eps
        self.in_proj = params.linear("in_proj")
        self.gate_proj = params.linear("gate_proj")
        self.out_proj = params.linear("out_proj", to_residual=True)
        head_H = torch.arange(block.heads, dtype=torch.float64)
        decay_H = torch.log1p(-(2.0 ** (-5 - head_H)))
        self.register_buffer(
            "decay_H", decay_H.to(params.device, params.fp32_dtype), persistent=False
        )

    decay_H: Tensor

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block, heads = self.block, (self.block.heads, -1)
        q, k, v = self.in_proj(x_BTD).split([block.k_width, block.k_width, block.v_width], -1)
        rope = Rope(theta=10_000.0)
        q_BTHK, k_BTHK = (
            apply_rope(x.unflatten(-1, heads), rope, block.k_head_dim, run) for x in (q, k)
        )
        o_BTHV = self.recur(
            q_BTHK,
            k_BTHK,
            v.unflatten(-1, heads),
            self.decay_H,
            None,
            run,
            cache,
            scale=block.k_head_dim**-0.5,
        )
        o = rms_normalized(o_BTHV, self.norm_eps).flatten(-2)
        return self.out_proj(rows.swiglu(self.gate_proj(x_BTD), o))


class GLA(Recurrent):
    """Gated linear attention (arXiv 2312.06635).

    S_t = diag(a_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, S [K, V] per head, with
    a_t = sigmoid(W_b W_a x_t)^{1/tau} per key channel, q is scaled by K^-1/2; a gated RMSNorm
    follows.
    """

    fields = frozenset(gla.GLA.model_fields)

    def __init__(self, block: gla.GLA, params: Parameters) -> None:
        tail = (block.conv - 1, block.conv_width) if block.conv else None
        super().__init__((block.heads, block.k_head_dim, block.v_head_dim), tail, params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.conv = ShortConvolution(params) if block.conv else None
        self.decay_a_proj = params.linear("decay_a_proj")
        self.decay_b_proj = params.linear("decay_b_proj")
        self.gate_proj = params.linear("gate_proj")
        self.norm = params.rms_norm("norm")
        self.out_proj = params.linear("out_proj", to_residual=True)

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        block, heads = self.block, (self.block.heads, -1)
        qkv = self.in_proj(x_BTD)
        if self.conv is not None:
            qkv = self.conv(qkv, run, cache)
        q, k, v = qkv.split([block.k_width, block.k_width, block.v_width], -1)
        raw = self.decay_b_proj(self.decay_a_proj(x_BTD)).to(self.fp32_dtype)
        decay_BTHK = (F.logsigmoid(raw) / GLA_TEMPERATURE).unflatten(-1, heads)
        o_BTHV = self.recur(
            q.unflatten(-1, heads),
            k.unflatten(-1, heads),
            v.unflatten(-1, heads),
            decay_BTHK,
            None,
            run,
            cache,
            scale=block.k_head_dim**-0.5,
        )
        gated = rows.gated_rms_norm(
            o_BTHV,
            self.gate_proj(x_BTD).unflatten(-1, heads),
            self.norm.weight,
            self.norm.eps,
            gate_first=False,
        )
        return self.out_proj(gated.flatten(-2))
