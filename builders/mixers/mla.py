"""Multi-head latent attention: expanded to heads for a text, inside the latent for one token."""

# B batch, T tokens, C keys, D model width, H heads, N key width without position, P rotated key
# width, V value width, R latent width, L = R + P what a token caches, I heads of the indexer

import torch
from torch import Tensor, nn

from ...kernels.attention import op as attention
from ...search_space.blocks import mla as record
from ...search_space.blocks.rope import Rope
from ...search_space.operators import NumberFormat
from ..body import Body, Pass
from ..caches import TokenCache
from ..parts import Parts
from ..positions import softmax_sharpness
from ..precision import quantized_cache
from .attention import rotated
from .masked_attention import Held, attend_where, before, same_document

LATENT_EPS = 1e-6  # of the norms inside, in every published model whatever its stack has


class MLA(Body):
    """arXiv 2405.04434, section 2.1. A token caches its normed latent beside one rotated key."""

    fields = frozenset(record.MLA.model_fields)

    def __init__(self, block: record.MLA, parts: Parts) -> None:
        super().__init__()
        self.block = block
        self.kv: NumberFormat = parts.kv
        if block.q_lora_rank is None:
            self.q_proj = parts.linear("q_proj")
        else:
            self.q_a_proj = parts.linear("q_a_proj")
            self.q_a_norm = parts.rms_norm("q_a_norm", LATENT_EPS)
            self.q_b_proj = parts.linear("q_b_proj")
        self.kv_a_proj = parts.linear("kv_a_proj")
        self.kv_a_norm = parts.rms_norm("kv_a_norm", LATENT_EPS)
        self.kv_b_proj = parts.linear("kv_b_proj")
        self.gate_proj = parts.linear("gate_proj") if block.out_gate else None
        self.o_proj = parts.linear("o_proj", to_residual=True)
        self.indexer = None
        if block.indexer:
            rope = block.rope and block.rope.model_copy(update={"interleaved": False})
            self.indexer = TokenIndexer(
                block.indexer, rope, block.qk_rope_head_dim, parts.under("indexer.")
            )
        scale = block.softmax_scale or block.qk_head_dim**-0.5
        self.scale = scale * softmax_sharpness(block.rope)

    def new_cache(self, batch: int) -> TokenCache:
        return TokenCache(batch, window=None, kv=self.kv)

    def forward(self, x_BTD: Tensor, run: Pass, cache: TokenCache | None = None) -> Tensor:
        query_latent = self._query_latent(x_BTD)
        named = {"latent": quantized_cache(self._kept(x_BTD, run), self.kv)}
        if self.indexer is not None:
            named |= self.indexer.keys(x_BTD, run)
        held = Held(cache, run, named)
        q_BTHN, q_BTHP = self._queries(query_latent, run)
        index_BTN = None
        if self.indexer is not None:
            seen_BTC = before(run.positions_BT, held.positions_BC)
            if held.plain:
                seen_BTC = same_document(run, seen_BTC)
            index_BTN = self.indexer.chosen(x_BTD, query_latent, held["index"], seen_BTC, run)
        if index_BTN is not None:
            o_BTHV = self._selected(q_BTHN, q_BTHP, held, index_BTN)
        elif held.plain:
            o_BTHV = self._expanded(q_BTHN, q_BTHP, held["latent"], run)
        elif held.newest and self.kv_b_proj.format == "bf16":
            o_BTHV = self._from_pages(q_BTHN, q_BTHP, held, run)
        else:
            seen_BTC = before(run.positions_BT, held.positions_BC)
            o_BTHV = self._absorbed(q_BTHN, q_BTHP, held, seen_BTC)
        o = o_BTHV.flatten(-2)
        if self.gate_proj is not None:
            o = o * self.gate_proj(x_BTD).sigmoid()
        return self.o_proj(o)

    @property
    def _parts_of_kept(self) -> list[int]:
        return [self.block.kv_lora_rank, self.block.qk_rope_head_dim]

    @property
    def _parts_of_head(self) -> list[int]:
        return [self.block.qk_nope_head_dim, self.block.v_head_dim]

    def _query_latent(self, x_BTD: Tensor) -> Tensor:
        """What queries are projected from: a latent, or the input itself."""
        if self.block.q_lora_rank is None:
            return x_BTD
        return self.q_a_norm(self.q_a_proj(x_BTD))

    def _queries(self, latent: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        block = self.block
        project = self.q_proj if block.q_lora_rank is None else self.q_b_proj
        widths = [block.qk_nope_head_dim, block.qk_rope_head_dim]
        q_BTHN, q_BTHP = project(latent).unflatten(-1, (block.heads, -1)).split(widths, -1)
        return q_BTHN, self._turned(q_BTHP, run)

    def _kept(self, x_BTD: Tensor, run: Pass) -> Tensor:
        latent_BTR, k_BTP = self.kv_a_proj(x_BTD).split(self._parts_of_kept, -1)
        k_BT1P = self._turned(k_BTP[:, :, None], run)
        return torch.cat([self.kv_a_norm(latent_BTR)[:, :, None], k_BT1P], -1)

    def _turned(self, x_BTHP: Tensor, run: Pass) -> Tensor:
        rope = self.block.rope
        return x_BTHP if rope is None else rotated(x_BTHP, rope, x_BTHP.shape[-1], run)

    def _expanded(self, q_BTHN: Tensor, q_BTHP: Tensor, kept_BT1L: Tensor, run: Pass) -> Tensor:
        block = self.block
        latent_BT1R, k_BT1P = kept_BT1L.split(self._parts_of_kept, -1)
        heads = self.kv_b_proj(latent_BT1R.squeeze(2)).unflatten(-1, (block.heads, -1))
        k_BTHN, v_BTHV = heads.split(self._parts_of_head, -1)
        q = torch.cat([q_BTHN, q_BTHP], -1)
        k = torch.cat([k_BTHN, k_BT1P.expand(-1, -1, block.heads, -1)], -1)
        return attention.attend_without_lse(
            q, k, v_BTHV, scale=self.scale, segment_ids=run.segment_ids_BT
        )

    def _absorbed(self, q_BTHN: Tensor, q_BTHP: Tensor, held: Held, seen_BTC: Tensor) -> Tensor:
        """The up-projection of keys moves to the query, that of values to the output."""
        k_BC1L, matrix = self._latent_keys(held)
        q_BTHL = self._inside_latent(q_BTHN, q_BTHP, matrix)
        latent_BC1R = k_BC1L[..., : self.block.kv_lora_rank]
        o_BTHR, _ = attend_where(
            q_BTHL, k_BC1L, latent_BC1R, lambda t: seen_BTC[:, None, t], scale=self.scale
        )
        return self._out_of_latent(o_BTHR, matrix).to(q_BTHN.dtype)

    def _selected(self, q_BTHN: Tensor, q_BTHP: Tensor, held: Held, index_BTN: Tensor) -> Tensor:
        """Absorbed attention over the tokens that the indexer chose for each query."""
        k_BC1L, matrix = self._latent_keys(held)
        o_BTHR, _ = attention.attend_selected(
            self._inside_latent(q_BTHN, q_BTHP, matrix),
            k_BC1L.squeeze(2),
            index_BTN,
            v_dim=self.block.kv_lora_rank,
            scale=self.scale,
        )
        return self._out_of_latent(o_BTHR, matrix).to(q_BTHN.dtype)

    def _latent_keys(self, held: Held) -> tuple[Tensor, Tensor]:
        """(k_BC1L, kv_b_proj's weight): cached latents with their rotated keys, as products see them."""
        latent_BC1R, k_BC1P = held["latent"].split(self._parts_of_kept, -1)
        latent_BC1R, matrix = self.kv_b_proj.factors(latent_BC1R)
        return torch.cat([latent_BC1R.to(matrix.dtype), k_BC1P.to(matrix.dtype)], -1), matrix

    def _from_pages(self, q_BTHN: Tensor, q_BTHP: Tensor, held: Held, run: Pass) -> Tensor:
        """The same for one new token, straight from the cache."""
        matrix, rank = self.kv_b_proj.weight, self.block.kv_lora_rank
        q_BTHL = self._inside_latent(q_BTHN, q_BTHP, matrix)
        pages = held.pages("latent", None, run.positions_BT[:, 0] + 1, value_dim=rank)
        o_BTHR, _ = attention.attend_cached(q_BTHL, pages, scale=self.scale)
        return self._out_of_latent(o_BTHR, matrix)

    def _inside_latent(self, q_BTHN: Tensor, q_BTHP: Tensor, matrix: Tensor) -> Tensor:
        up_k_HNR = matrix.unflatten(0, (self.block.heads, -1)).split(self._parts_of_head, 1)[0]
        q_BTHR = torch.einsum("bthn,hnr->bthr", q_BTHN.to(matrix.dtype), up_k_HNR)
        return torch.cat([q_BTHR, q_BTHP.to(matrix.dtype)], -1)

    def _out_of_latent(self, o_BTHR: Tensor, matrix: Tensor) -> Tensor:
        up_v_HVR = matrix.unflatten(0, (self.block.heads, -1)).split(self._parts_of_head, 1)[1]
        return torch.einsum("bthr,hvr->bthv", o_BTHR, up_v_HVR)


class TokenIndexer(nn.Module):
    """DeepSeek's lightning indexer: a query reads the `top_k` tokens that score highest.

    score = sum over heads of w_h relu(q_h k) (DeepSeek-V3.2-Exp report, equation 1). Nothing is
    timings through the choice itself.
    """

    def __init__(self, index: record.Indexer, rope: Rope | None, dims: int, parts: Parts) -> None:
        super().__init__()
        self.index, self.rope, self.dims = index, rope, min(dims, index.head_dim)
        self.q_b_proj = parts.linear("q_b_proj")
        self.k_proj = parts.linear("k_proj")
        self.k_norm = parts.layer_norm("k_norm", 1e-6)
        self.head_proj = parts.linear("head_proj")

    def keys(self, x_BTD: Tensor, run: Pass) -> dict[str, Tensor]:
        """What is cached beside the latent."""
        return {"index": self._turned(self.k_norm(self.k_proj(x_BTD))[:, :, None], run)}

    @torch.no_grad()
    def chosen(
        self, x_BTD: Tensor, latent: Tensor, k_BC1K: Tensor, seen_BTC: Tensor, run: Pass
    ) -> Tensor | None:
        """index_BTN of the best `top_k` tokens in `seen_BTC` for each query; None if all are read."""
        q_BTIK = self.q_b_proj(latent).unflatten(-1, (self.index.heads, -1))
        score_BTC = attention.index_scores(
            self._turned(q_BTIK, run), k_BC1K.squeeze(2), self.head_proj(x_BTD)
        )
        return best(score_BTC, seen_BTC, self.index.top_k)

    def _turned(self, x_BTIK: Tensor, run: Pass) -> Tensor:
        return x_BTIK if self.rope is None else rotated(x_BTIK, self.rope, self.dims, run)


def best(score_BTC: Tensor, seen_BTC: Tensor, top_k: int) -> Tensor | None:
    """index_BTN, int32, of the `top_k` highest scores among the keys seen; -1 past the last of them.

    None where there are no more than `top_k` keys: then a query reads all that it sees.
    """
    if top_k >= score_BTC.shape[-1]:
        return None
    # ReLU leaves many zeros: of those the earliest, however many keys stand beside them
    index_C = torch.arange(score_BTC.shape[-1], device=score_BTC.device)
    score_BTC = torch.where(score_BTC == 0, -1e-30 * index_C, score_BTC)
    score_BTC = score_BTC.masked_fill(~seen_BTC, -torch.inf)
    top_BTN = score_BTC.topk(top_k, -1).indices
    return top_BTN.masked_fill(~seen_BTC.gather(-1, top_BTN), -1).int()
