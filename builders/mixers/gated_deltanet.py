"""Gated DeltaNet: the mixer that decays its state and corrects what it stores."""

# B batch, T tokens, D model width, G key heads, H value heads, K key width, V value width

from torch import Tensor

from ...kernels.rows import op as rows
from ...search_space.blocks import gated_deltanet as record
from ..parts import Parts
from .recurrent import Recurrence, Recurrent, RecurrentCache

UNIT_EPS = 1e-6  # inside the root of a length


class GatedDeltaNet(Recurrent):
    """The gated delta rule (arXiv 2412.06464) on keys and queries of length one, q over sqrt(K)."""

    def __init__(self, block: record.GatedDeltaNet, parts: Parts) -> None:
        super().__init__(block, parts, (block.v_heads, block.k_head_dim, block.v_head_dim))
        self.block = block
        self.gate_proj = parts.linear("gate_proj")

    def mix(self, x_BTD: Tensor, cache: RecurrentCache, recur: Recurrence) -> Tensor:
        block = self.block
        qkv, z = self.in_proj(x_BTD).split([block.conv_width, block.v_width], -1)
        qkv, cache.tail_BWN = self.conv(qkv, cache.tail_BWN)
        q, k, v = qkv.split([block.k_width, block.k_width, block.v_width], -1)
        q_BTGK, k_BTGK = (self._unit(x.unflatten(-1, (block.k_heads, -1))) for x in (q, k))
        q_BTGK = q_BTGK * block.k_head_dim**-0.5
        v_BTHV = v.unflatten(-1, (block.v_heads, -1))
        raw_beta_BTH, raw_decay_BTH = self.gate_proj(x_BTD).chunk(2, -1)
        beta_BTH = raw_beta_BTH.to(self.dt_bias.dtype).sigmoid()
        _, decay_BTH = self.rates(raw_decay_BTH)
        o_BTHV, cache.state_BHKV = recur(
            q_BTGK, k_BTGK, v_BTHV, decay_BTH, beta_BTH, cache.state_BHKV
        )
        o_BTHV = self.norm(o_BTHV.to(x_BTD.dtype))
        return self.out_proj(rows.swiglu(z, o_BTHV.flatten(-2)))

    def _unit(self, x: Tensor) -> Tensor:
        x = x.to(self.dt_bias.dtype)
        return x * (x.square().sum(-1, keepdim=True) + UNIT_EPS).rsqrt()
