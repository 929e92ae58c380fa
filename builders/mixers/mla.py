"""Multi-head latent attention: expanded to heads in prefill, absorbed into the latent in decode."""

# B batch, T tokens, C keys, D model width, H heads, N key width without position, P rotated key
# width, V value width, R latent width, L = R + P cached width per token, I heads of the indexer,
# S tokens that it selects

import torch
from torch import Tensor, nn

from ...kernels.attention import op as attention
from ...search_space.blocks import mla as record
from ...search_space.blocks.rope import Rope
from ...search_space.operators import NumberFormat
from ..body import Body, Pass
from ..caches import KeyValues, TokenCache
from ..parameters import Parameters
from ..positions import apply_rope, softmax_scale_factor
from ..precision import quantized_cache
from .masked_attention import causal_mask, masked_attention, within_segment

LATENT_EPS = 1e-6  # of the latent norms in every published model, whatever its other norms have


class MLA(Body):
    """DeepSeek-V2 (arXiv 2405.04434, section 2.1).

    c = norm(W_dkv x) is the latent of width R = kv_lora_rank, k_h = [W_uk_h c, rope(W_kr x)],
    v_h = W_uv_h c; softmax attention per head follows. A token caches [c, rope(W_kr x)]. In decode
    W_uk moves to the query and W_uv to the output, so that attention runs over the latents.
    """

    fields = frozenset(record.MLA.model_fields)

    def __init__(self, block: record.MLA, params: Parameters) -> None:
        super().__init__()
        self.block = block
        self.kv: NumberFormat = params.kv
        if block.q_lora_rank is None:
            self.q_proj = params.linear("q_proj")
        else:
            self.q_a_proj = params.linear("q_a_proj")
            self.q_a_norm = params.rms_norm("q_a_norm", LATENT_EPS)
            self.q_b_proj = params.linear("q_b_proj")
        self.kv_a_proj = params.linear("kv_a_proj")
        self.kv_a_norm = params.rms_norm("kv_a_norm", LATENT_EPS)
        self.kv_b_proj = params.linear("kv_b_proj")
        self.gate_proj = params.linear("gate_proj") if block.out_gate else None
        self.o_proj = params.linear("o_proj", to_residual=True)
        self.indexer = None
        if block.indexer:
            rope = block.rope and block.rope.model_copy(update={"interleaved": False})
            self.indexer = TokenIndexer(
                block.indexer, rope, block.qk_rope_head_dim, params.under("indexer.")
            )
        scale = block.softmax_scale or block.qk_head_dim**-0.5
        self.scale = scale * softmax_scale_factor(block.rope)

    def new_cache(self, batch: int) -> TokenCache:
        return TokenCache(batch, window=None, kv=self.kv)

    def forward(self, x_BTD: Tensor, run: Pass, cache: TokenCache | None = None) -> Tensor:
        query_latent = self._query_latent(x_BTD)
        named = {"latent": quantized_cache(self._cached(x_BTD, run), self.kv)}
        if self.indexer is not None:
            named |= self.indexer.keys(x_BTD, run)
        keys = KeyValues(cache, run.positions_BT, run.valid_BT, named)
        q_BTHN, q_BTHP = self._queries(query_latent, run)
        index_BTS = None
        if self.indexer is not None:
            mask_BTC = causal_mask(run.positions_BT, keys.positions_BC)
            if keys.prefill:
                mask_BTC = within_segment(run, mask_BTC)
            index_BTS = self.indexer.selected(x_BTD, query_latent, keys["index"], mask_BTC, run)
        if index_BTS is not None:
            o_BTHV = self._selected(q_BTHN, q_BTHP, keys, index_BTS)
        elif keys.prefill:
            o_BTHV = self._expanded(q_BTHN, q_BTHP, keys["latent"], run)
        elif keys.decode and self.kv_b_proj.format == "bf16":
            o_BTHV = self._decode(q_BTHN, q_BTHP, keys, run)
        else:
            mask_BTC = causal_mask(run.positions_BT, keys.positions_BC)
            o_BTHV = self._absorbed(q_BTHN, q_BTHP, keys, mask_BTC)
        o = o_BTHV.flatten(-2)
        if self.gate_proj is not None:
            o = o * self.gate_proj(x_BTD).sigmoid()
        return self.o_proj(o)

    @property
    def _cached_widths(self) -> list[int]:
        return [self.block.kv_lora_rank, self.block.qk_rope_head_dim]

    @property
    def _head_widths(self) -> list[int]:
        return [self.block.qk_nope_head_dim, self.block.v_head_dim]

    def _query_latent(self, x_BTD: Tensor) -> Tensor:
        """Input of the query projection: the query latent, or x itself."""
        if self.block.q_lora_rank is None:
            return x_BTD
        return self.q_a_norm(self.q_a_proj(x_BTD))

    def _queries(self, latent: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        block = self.block
        project = self.q_proj if block.q_lora_rank is None else self.q_b_proj
        widths = [block.qk_nope_head_dim, block.qk_rope_head_dim]
        q_BTHN, q_BTHP = project(latent).unflatten(-1, (block.heads, -1)).split(widths, -1)
        return q_BTHN, self._rotated(q_BTHP, run)

    def _cached(self, x_BTD: Tensor, run: Pass) -> Tensor:
        latent_BTR, k_BTP = self.kv_a_proj(x_BTD).split(self._cached_widths, -1)
        k_BT1P = self._rotated(k_BTP[:, :, None], run)
        return torch.cat([self.kv_a_norm(latent_BTR)[:, :, None], k_BT1P], -1)

    def _rotated(self, x_BTHP: Tensor, run: Pass) -> Tensor:
        rope = self.block.rope
        return x_BTHP if rope is None else apply_rope(x_BTHP, rope, x_BTHP.shape[-1], run)

    def _expanded(self, q_BTHN: Tensor, q_BTHP: Tensor, cached_BT1L: Tensor, run: Pass) -> Tensor:
        block = self.block
        latent_BT1R, k_BT1P = cached_BT1L.split(self._cached_widths, -1)
        heads = self.kv_b_proj(latent_BT1R.squeeze(2)).unflatten(-1, (block.heads, -1))
        k_BTHN, v_BTHV = heads.split(self._head_widths, -1)
        q = torch.cat([q_BTHN, q_BTHP], -1)
        k = torch.cat([k_BTHN, k_BT1P.expand(-1, -1, block.heads, -1)], -1)
        return attention.attend_without_lse(
            q, k, v_BTHV, scale=self.scale, segment_ids=run.segment_ids_BT
        )

    def _absorbed(
        self, q_BTHN: Tensor, q_BTHP: Tensor, keys: KeyValues, mask_BTC: Tensor
    ) -> Tensor:
        """Attention over latents under a mask: W_uk moves to the query, W_uv to the output."""
        k_BC1L, matrix = self._latent_keys(keys)
        q_BTHL = self._into_latent(q_BTHN, q_BTHP, matrix)
        latent_BC1R = k_BC1L[..., : self.block.kv_lora_rank]
        o_BTHR, _ = masked_attention(
            q_BTHL, k_BC1L, latent_BC1R, lambda t: mask_BTC[:, None, t], scale=self.scale
        )
        return self._out_of_latent(o_BTHR, matrix).to(q_BTHN.dtype)

    def _selected(
        self, q_BTHN: Tensor, q_BTHP: Tensor, keys: KeyValues, index_BTS: Tensor
    ) -> Tensor:
        """Absorbed attention over the tokens that the indexer selected for each query."""
        k_BC1L, matrix = self._latent_keys(keys)
        o_BTHR, _ = attention.attend_selected(
            self._into_latent(q_BTHN, q_BTHP, matrix),
            k_BC1L.squeeze(2),
            index_BTS,
            v_dim=self.block.kv_lora_rank,
            scale=self.scale,
        )
        return self._out_of_latent(o_BTHR, matrix).to(q_BTHN.dtype)

    def _latent_keys(self, keys: KeyValues) -> tuple[Tensor, Tensor]:
        """(k_BC1L, W_kv_b) in the number format of the projection: latents and rotated keys."""
        latent_BC1R, k_BC1P = keys["latent"].split(self._cached_widths, -1)
        latent_BC1R, matrix = self.kv_b_proj.factors(latent_BC1R)
        return torch.cat([latent_BC1R.to(matrix.dtype), k_BC1P.to(matrix.dtype)], -1), matrix

    def _decode(self, q_BTHN: Tensor, q_BTHP: Tensor, keys: KeyValues, run: Pass) -> Tensor:
        """Absorbed attention of one new token per row, directly over the paged cache."""
        matrix, rank = self.kv_b_proj.weight, self.block.kv_lora_rank
        q_BTHL = self._into_latent(q_BTHN, q_BTHP, matrix)
        pages = keys.pages("latent", None, run.positions_BT[:, 0] + 1, value_dim=rank)
        o_BTHR, _ = attention.attend_cached(q_BTHL, pages, scale=self.scale)
        return self._out_of_latent(o_BTHR, matrix)

    def _into_latent(self, q_BTHN: Tensor, q_BTHP: Tensor, matrix: Tensor) -> Tensor:
        up_k_HNR = matrix.unflatten(0, (self.block.heads, -1)).split(self._head_widths, 1)[0]
        q_BTHR = torch.einsum("bthn,hnr->bthr", q_BTHN.to(matrix.dtype), up_k_HNR)
        return torch.cat([q_BTHR, q_BTHP.to(matrix.dtype)], -1)

    def _out_of_latent(self, o_BTHR: Tensor, matrix: Tensor) -> Tensor:
        up_v_HVR = matrix.unflatten(0, (self.block.heads, -1)).split(self._head_widths, 1)[1]
        return torch.einsum("bthr,hvr->bthv", o_BTHR, up_v_HVR)


class TokenIndexer(nn.Module):
    """DeepSeek's lightning indexer: a query reads the `top_k` tokens that score highest.

    score = sum over heads of w_h relu(q_h . k) (DeepSeek-V3.2-Exp report, equation 1). The
    selection has no gradient.
    """

    def __init__(
        self, index: record.Indexer, rope: Rope | None, dims: int, params: Parameters
    ) -> None:
        super().__init__()
        self.index, self.rope, self.dims = index, rope, min(dims, index.head_dim)
        self.q_b_proj = params.linear("q_b_proj")
        self.k_proj = params.linear("k_proj")
        self.k_norm = params.layer_norm("k_norm", 1e-6)
        self.head_proj = params.linear("head_proj")

    def keys(self, x_BTD: Tensor, run: Pass) -> dict[str, Tensor]:
        """The indexer's keys, cached beside the latent."""
        return {"index": self._rotated(self.k_norm(self.k_proj(x_BTD))[:, :, None], run)}

    @torch.no_grad()
    def selected(
        self, x_BTD: Tensor, latent: Tensor, k_BC1K: Tensor, mask_BTC: Tensor, run: Pass
    ) -> Tensor | None:
        """index_BTS of each query's `top_k` best tokens in `mask_BTC`; None if all are read."""
        q_BTIK = self.q_b_proj(latent).unflatten(-1, (self.index.heads, -1))
        score_BTC = attention.index_scores(
            self._rotated(q_BTIK, run), k_BC1K.squeeze(2), self.head_proj(x_BTD)
        )
        return top_k_indices(score_BTC, mask_BTC, self.index.top_k)

    def _rotated(self, x_BTIK: Tensor, run: Pass) -> Tensor:
        return x_BTIK if self.rope is None else apply_rope(x_BTIK, self.rope, self.dims, run)


def top_k_indices(score_BTC: Tensor, mask_BTC: Tensor, top_k: int) -> Tensor | None:
    """index_BTS, int32, of the `top_k` highest scores among the allowed keys, -1 past the last.

    None where there are at most `top_k` keys: then a query reads all that the mask allows.
    """
    if top_k >= score_BTC.shape[-1]:
        return None
    # ReLU gives many zeros: prefer the earliest of them, whatever the number of keys
    index_C = torch.arange(score_BTC.shape[-1], device=score_BTC.device)
    score_BTC = torch.where(score_BTC == 0, -1e-30 * index_C, score_BTC)
    score_BTC = score_BTC.masked_fill(~mask_BTC, -torch.inf)
    top_BTS = score_BTC.topk(top_k, -1).indices
    return top_BTS.masked_fill(~mask_BTC.gather(-1, top_BTS), -1).int()
