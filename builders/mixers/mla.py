"""Multi-head latent attention: expanded to heads for a text, inside the latent for one token."""

# B batch, T tokens, D model width, H heads, N key width without position, P rotated key width,
# V value width, R latent width, L = R + P what a token caches

import torch
from torch import Tensor
from torch.nn import functional as F

from ...search_space.blocks import mla as record
from ..body import Body
from ..parts import Parts
from ..precision import ROW, quantised
from .cache import TokenCache
from .rope import rotate


class Mla(Body):
    """arXiv 2405.04434, section 2.1. A token caches its normed latent beside one rotated key."""

    def __init__(self, block: record.Mla, parts: Parts) -> None:
        super().__init__()
        self.block, self.fp8_cache = block, parts.fp8_cache
        if block.q_lora_rank is None:
            self.q_proj = parts.linear("q_proj")
        else:
            self.q_a_proj = parts.linear("q_a_proj")
            self.q_a_norm = parts.norm("q_a_norm")
            self.q_b_proj = parts.linear("q_b_proj")
        self.kv_a_proj = parts.linear("kv_a_proj")
        self.kv_a_norm = parts.norm("kv_a_norm")
        self.kv_b_proj = parts.linear("kv_b_proj")
        self.o_proj = parts.linear("o_proj", to_residual=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._expanded(x_BTD, self._kept(x_BTD, first=0))

    def prefill(self, x_BTD: Tensor) -> tuple[Tensor, TokenCache]:
        kept_BT1L = self._kept(x_BTD, first=0)
        cache = TokenCache(kept_BT1L, window=None, fp8=self.fp8_cache)
        return self._expanded(x_BTD, kept_BT1L), cache

    def step(self, x_BTD: Tensor, cache: TokenCache) -> Tensor:
        """Absorbed: the up-projection of keys moves to the query, that of values to the output."""
        block = self.block
        q_BTHN, q_BTHP = self._queries(x_BTD, first=cache.length)
        cache.append(self._kept(x_BTD, first=cache.length))
        latent_BTR, k_BTP = cache.read().squeeze(2).split(self._parts_of_kept, -1)
        latent_BTR, matrix = self.kv_b_proj.factors(latent_BTR)
        up_k_HNR, up_v_HVR = matrix.unflatten(0, (block.heads, -1)).split(self._parts_of_head, 1)
        q_BHR = torch.einsum("bhn,hnr->bhr", q_BTHN[:, 0].to(matrix.dtype), up_k_HNR)
        logits_BHT = q_BHR @ latent_BTR.mT + q_BTHP[:, 0] @ k_BTP.mT
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        weights_BHT = (logits_BHT.to(wide) * block.qk_head_dim**-0.5).softmax(-1)
        o_BHR = weights_BHT.to(matrix.dtype) @ latent_BTR
        o_BHV = torch.einsum("bhr,hvr->bhv", o_BHR, up_v_HVR)
        return self.o_proj(o_BHV.to(x_BTD.dtype).flatten(-2)[:, None])

    @property
    def _parts_of_kept(self) -> list[int]:
        return [self.block.kv_lora_rank, self.block.qk_rope_head_dim]

    @property
    def _parts_of_head(self) -> list[int]:
        return [self.block.qk_nope_head_dim, self.block.v_head_dim]

    def _queries(self, x_BTD: Tensor, *, first: int) -> tuple[Tensor, Tensor]:
        block = self.block
        if block.q_lora_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_norm(self.q_a_proj(x_BTD)))
        widths = [block.qk_nope_head_dim, block.qk_rope_head_dim]
        q_BTHN, q_BTHP = q.unflatten(-1, (block.heads, -1)).split(widths, -1)
        return q_BTHN, self._rotated(q_BTHP, first)

    def _kept(self, x_BTD: Tensor, *, first: int) -> Tensor:
        latent_BTR, k_BTP = self.kv_a_proj(x_BTD).split(self._parts_of_kept, -1)
        k_BT1P = self._rotated(k_BTP[:, :, None], first)
        return torch.cat([self.kv_a_norm(latent_BTR)[:, :, None], k_BT1P], -1)

    def _rotated(self, x_BTHP: Tensor, first: int) -> Tensor:
        rope = self.block.rope
        if rope is None:
            return x_BTHP
        return rotate(x_BTHP, first=first, rotated=x_BTHP.shape[-1], theta=rope.theta)

    def _expanded(self, x_BTD: Tensor, kept_BT1L: Tensor) -> Tensor:
        block = self.block
        if self.fp8_cache:
            kept_BT1L = quantised(kept_BT1L, ROW)
        latent_BT1R, k_BT1P = kept_BT1L.split(self._parts_of_kept, -1)
        heads = self.kv_b_proj(latent_BT1R.squeeze(2)).unflatten(-1, (block.heads, -1))
        k_BTHN, v_BTHV = heads.split(self._parts_of_head, -1)
        q = torch.cat(self._queries(x_BTD, first=0), -1)
        k = torch.cat([k_BTHN, k_BT1P.expand(-1, -1, block.heads, -1)], -1)
        # the fused kernels want one width for keys and values
        v = F.pad(v_BTHV, (0, max(0, block.qk_head_dim - block.v_head_dim)))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2)[..., : block.v_head_dim].flatten(-2))
