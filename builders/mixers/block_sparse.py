"""Block-sparse attention: a query attends to the key blocks that an index selects."""

# B batch, T tokens, S tokens with every document at a block boundary, C keys, D model width,
# H query heads, I index heads (H without an index branch), J heads of the scored keys,
# G key/value heads, L heads with a block list of their own, K key width, V value width,
# N blocks of keys, M blocks per list

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.attention import op as attention
from ...search_space.blocks import attention as record
from ..body import Pass, document_positions, document_starts
from ..caches import PAGE, KeyValues
from ..parameters import Parameters
from ..positions import apply_rope


class BlockIndex(nn.Module):
    """Selects `top_k` key blocks per query: the `local_blocks` nearest and the best by score.

    Without index heads, a block scores q . mean(k of the block) for each query head (MoBA, arXiv
    2502.13189). With an index branch it scores max(q_i . k_i over the block) for each index head i
    (MiniMax-M3). Blocks are counted from the first token of a document. The selection has no
    gradient.
    """

    def __init__(self, block: record.Attention, params: Parameters) -> None:
        super().__init__()
        assert block.block_sparse is not None, "built for block-sparse attention only"
        self.sparse, self.rope = block.block_sparse, block.rope
        if self.sparse.index_heads:
            self.q_proj, self.k_proj = params.linear("q_proj"), params.linear("k_proj")
            self.q_norm = params.stack_norm("q_norm")
            self.k_norm = params.stack_norm("k_norm")

    def keys(self, x_BTD: Tensor, run: Pass) -> dict[str, Tensor]:
        """The index branch's keys, cached beside keys and values; empty without a branch."""
        if not self.sparse.index_heads:
            return {}
        return {"index": self._rotated(self.k_norm(self.k_proj(x_BTD))[:, :, None], run)}

    def queries(self, x_BTD: Tensor, q_BTHK: Tensor, run: Pass) -> Tensor:
        """q_BTIK that blocks are scored with: the index branch's, or those of attention."""
        if not self.sparse.index_heads:
            return q_BTHK
        q_BTIK = self.q_proj(x_BTD).unflatten(-1, (self.sparse.index_heads, -1))
        return self._rotated(self.q_norm(q_BTIK), run)

    def scored(self, keys: KeyValues) -> Tensor:
        """k_BCJK that blocks are scored by."""
        return keys["index" if self.sparse.index_heads else "k"]

    @torch.no_grad()
    def lists(
        self, q_BTIK: Tensor, k_BCJK: Tensor, own_BT: Tensor, first_BT: Tensor | None = None
    ) -> Tensor:
        """blocks_BITM, int32: the selected blocks of each query, -1 where there are fewer.

        Keys lie at their positions from the first token on. `own_BT` is the block of a query,
        `first_BT` the first block of its document (0 if None).
        """
        score_BITN = self._block_scores(q_BTIK, k_BCJK)
        block_N = torch.arange(score_BITN.shape[-1], device=k_BCJK.device)
        back_BTN = own_BT[..., None] - block_N
        visible_BTN = back_BTN >= 0
        if first_BT is not None:
            visible_BTN = visible_BTN & (block_N >= first_BT[..., None])
        score_BITN = score_BITN.masked_fill(~visible_BTN[:, None], -torch.inf)
        return self._best(score_BITN, visible_BTN & (back_BTN < self.sparse.local_blocks))

    def _best(self, score_BITN: Tensor, near_BTN: Tensor) -> Tensor:
        """blocks_BITM, int32: the near blocks, then those of the highest scores; -1 past them."""
        score_BITN = score_BITN.masked_fill(near_BTN[:, None], torch.inf)
        top = score_BITN.topk(min(self.sparse.top_k, score_BITN.shape[-1]), -1)
        return torch.where(top.values > -torch.inf, top.indices, -1).int()

    def _block_scores(self, q_BTIK: Tensor, k_BCJK: Tensor) -> Tensor:
        """score_BITN; meaningful for blocks that lie whole before a query."""
        fp32 = torch.promote_types(k_BCJK.dtype, torch.float32)
        padding = (0, 0, 0, 0, 0, -k_BCJK.shape[1] % self.sparse.block)
        k_BNSJK = F.pad(k_BCJK.to(fp32), padding).unflatten(1, (-1, self.sparse.block))
        q_BTJRK = q_BTIK.to(fp32).unflatten(2, (k_BCJK.shape[2], -1))
        if self.sparse.index_heads:
            score = torch.einsum("btjrk,bnsjk->bjrtns", q_BTJRK, k_BNSJK).amax(-1)
        else:
            score = torch.einsum("btjrk,bnjk->bjrtn", q_BTJRK, k_BNSJK.mean(2))
        return score.flatten(1, 2)

    @torch.no_grad()
    def mask(
        self, q_BTIK: Tensor, k_BCJK: Tensor, positions_BC: Tensor, visible_BTC: Tensor, run: Pass
    ) -> Tensor:
        """mask_BITC of the same selection for keys at any positions, padding among them."""
        fp32 = torch.promote_types(k_BCJK.dtype, torch.float32)
        group = q_BTIK.shape[2] // k_BCJK.shape[2]
        k_BIKC = k_BCJK.repeat_interleave(group, 2).permute(0, 2, 3, 1)
        score_BITC = q_BTIK.transpose(1, 2).to(fp32) @ k_BIKC.to(fp32)
        of_key_BC = positions_BC.clamp(min=0) // self.sparse.block
        own_BT = run.positions_BT // self.sparse.block
        blocks = int(max(of_key_BC.max(), own_BT.max())) + 1
        index_BITC = of_key_BC[:, None, None].expand_as(score_BITC)
        visible_BITC = visible_BTC[:, None].expand_as(score_BITC)
        zeros_BITN = score_BITC.new_zeros(*score_BITC.shape[:-1], blocks)
        if self.sparse.index_heads:
            masked = score_BITC.masked_fill(~visible_BITC, -torch.inf)
            score_BITN = zeros_BITN.fill_(-torch.inf)
            score_BITN.scatter_reduce_(-1, index_BITC, masked, "amax")
        else:
            total_BITN = zeros_BITN.scatter_add(-1, index_BITC, score_BITC * visible_BITC)
            count_BITN = zeros_BITN.scatter_add(-1, index_BITC, visible_BITC.to(fp32))
            score_BITN = (total_BITN / count_BITN).masked_fill(count_BITN == 0, -torch.inf)
        back_BTN = own_BT[..., None] - torch.arange(blocks, device=own_BT.device)
        near_BTN = (back_BTN >= 0) & (back_BTN < self.sparse.local_blocks)
        blocks_BITM = self._best(score_BITN, near_BTN).long()
        shape = (*score_BITN.shape[:-1], blocks + 1)  # -1 goes to the extra column
        chosen_BITN = score_BITN.new_zeros(shape, dtype=torch.bool)
        chosen_BITN.scatter_(-1, blocks_BITM % (blocks + 1), True)
        return chosen_BITN.gather(-1, index_BITC)

    def _rotated(self, x_BTIK: Tensor, run: Pass) -> Tensor:
        if self.rope is None:
            return x_BTIK
        return apply_rope(x_BTIK, self.rope, self.rope.rotated(x_BTIK.shape[-1]), run)


def block_sparse_attention(
    index: BlockIndex, q_BTIK: Tensor, q_BTHK: Tensor, keys: KeyValues, run: Pass, scale: float
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT) of whole texts by the block-sparse kernel.

    Packed rows are copied to a layout in which every document begins at a block boundary.
    """
    size, T = index.sparse.block, q_BTHK.shape[1]
    k_BTJK = index.scored(keys)
    q, k, v = q_BTHK, keys["k"], keys["v"]
    if run.segment_ids_BT is None:
        own_1T = torch.arange(T, device=q_BTHK.device)[None] // size
        blocks_BITM = index.lists(q_BTIK, k_BTJK, own_1T)
        return _attend_blocks(q, k, v, blocks_BITM, size, scale, None)
    layout = _block_aligned(run.segment_ids_BT, size)
    q_BSIK, k_BSJK, q, k, v = (layout.scattered(x) for x in (q_BTIK, k_BTJK, q, k, v))
    own_1S = torch.arange(q_BSIK.shape[1], device=q_BTHK.device)[None] // size
    blocks_BISM = index.lists(q_BSIK, k_BSJK, own_1S, layout.first_BS // size)
    o_BSHV, lse_BHS = _attend_blocks(q, k, v, blocks_BISM, size, scale, layout.segment_ids_BS)
    row_B1 = torch.arange(len(q_BTHK), device=q_BTHK.device)[:, None]
    o_BTHV = o_BSHV[row_B1, layout.slot_BT]
    return o_BTHV, lse_BHS.transpose(1, 2)[row_B1, layout.slot_BT].transpose(1, 2)


def block_sparse_attention_cached(
    index: BlockIndex,
    q_B1IK: Tensor,
    q_B1HK: Tensor,
    keys: KeyValues,
    run: Pass,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """(o_B1HV, lse_BH1) of one new token per row, over a copy of its selected blocks alone.

    Scoring reads all cached keys: their block means are not cached.
    """
    assert keys.cache is not None, "decoding has a cache"
    size, position_B = index.sparse.block, run.positions_BT[:, 0]
    blocks_BI1M = index.lists(q_B1IK, index.scored(keys), run.positions_BT // size)
    H, G, I = q_B1HK.shape[2], keys["k"].shape[2], blocks_BI1M.shape[1]
    L = record.list_heads(H, G, I)
    blocks_BLM = blocks_BI1M.squeeze(2).repeat_interleave(L // I, 1).long()
    count_BL = (blocks_BLM >= 0).sum(-1)
    # ascending, so that the query's own block, the only partial one, is the last
    missing = torch.iinfo(blocks_BLM.dtype).max // size - 1
    blocks_BLM = blocks_BLM.masked_fill(blocks_BLM < 0, missing).sort(-1).values
    token_BLS = blocks_BLM[..., None] * size + torch.arange(size, device=q_B1HK.device)
    token_BLS = token_BLS.flatten(2).clamp(max=keys.positions_BC.shape[1] - 1)
    token_BLS = F.pad(token_BLS, (0, -token_BLS.shape[2] % PAGE))
    lengths_BL = (count_BL - 1) * size + position_B[:, None] % size + 1
    pages = keys.cache.selected_pages("k", "v", token_BLS, lengths_BL)
    q_N1RK = q_B1HK.squeeze(1).unflatten(1, (L, -1)).flatten(0, 1)[:, None]
    o_N1RV, lse_NR1 = attention.attend_cached(q_N1RK, pages, scale=scale, softcap=softcap)
    o_B1HV = o_N1RV.squeeze(1).unflatten(0, (-1, L)).flatten(1, 2)[:, None]
    return o_B1HV, lse_NR1.unflatten(0, (-1, L)).flatten(1, 2)


class _Layout(NamedTuple):
    """Rows of S slots: the slot of each token, and of each slot its document and its first slot."""

    slot_BT: Tensor
    segment_ids_BS: Tensor
    first_BS: Tensor

    def scattered(self, x: Tensor) -> Tensor:
        """x [B, T, ...] in its slots, zeros elsewhere."""
        row_B1 = torch.arange(len(x), device=x.device)[:, None]
        empty = x.new_zeros(*self.segment_ids_BS.shape, *x.shape[2:])
        return empty.index_put((row_B1, self.slot_BT), x)


def _block_aligned(segment_ids_BT: Tensor, size: int) -> _Layout:
    starts_BT = document_starts(segment_ids_BT)
    position_BT = document_positions(segment_ids_BT)
    length_BT = F.pad(position_BT[:, :-1] + 1, (1, 0))  # of the document before, at each start
    padding_BT = torch.where(starts_BT, -length_BT % size, 0)
    index_T = torch.arange(segment_ids_BT.shape[1], device=segment_ids_BT.device)
    slot_BT = index_T + padding_BT.cumsum(1)
    empty_BS = slot_BT.new_zeros(len(slot_BT), int(slot_BT.max()) + 1)
    number_BS = empty_BS.scatter(1, slot_BT, starts_BT.cumsum(1) - 1).cummax(1).values
    first_BS = empty_BS.scatter(1, slot_BT, slot_BT - position_BT).cummax(1).values
    return _Layout(slot_BT, number_BS.int(), first_BS)


def _attend_blocks(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BITM: Tensor,
    size: int,
    scale: float,
    segment_ids_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The kernel, with keys and values repeated where one key head has several lists."""
    H, G, I = q_BTHK.shape[2], k_BTGK.shape[2], blocks_BITM.shape[1]
    L = record.list_heads(H, G, I)
    return attention.attend_blocks(
        q_BTHK,
        k_BTGK.repeat_interleave(L // G, 2) if L > G else k_BTGK,
        v_BTGV.repeat_interleave(L // G, 2) if L > G else v_BTGV,
        blocks_BITM.repeat_interleave(L // I, 1),
        block=size,
        scale=scale,
        segment_ids=segment_ids_BT,
    )
