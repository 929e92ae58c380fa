"""Softmax attention with any grouping of heads: global, windowed, chunked or block-sparse."""

# B batch, T tokens, C keys, D model width, H query heads, G key/value heads, K key width,
# V value width, N blocks of keys, I heads of the index branch

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.attention import op as attention
from ...kernels.rows import op as rows
from ...search_space.blocks import attention as record
from ...search_space.blocks.rope import Rope
from ...search_space.operators import NumberFormat
from ..body import Body, Pass
from ..caches import TokenCache
from ..parts import Parts, normed_without_weight
from ..positions import rotation
from ..precision import quantized_cache
from .masked_attention import Held, attend_apart, attend_where, before, merged, same_document

KV = "kv of attention"  # what a block with kv_reuse finds in a pass


class Attention(Body):
    """MHA, MQA and GQA (arXiv 2305.13245). With an 8-bit cache, training too sees what it holds."""

    fields = frozenset(record.Attention.model_fields) - {"cross", "relative_buckets"}

    def __init__(self, block: record.Attention, parts: Parts) -> None:
        super().__init__()
        self.block = block
        self.kv: NumberFormat = parts.kv
        self.q_proj = parts.linear("q_proj")
        if not block.kv_reuse:
            self.k_proj = parts.linear("k_proj")
            if not block.k_eq_v:
                self.v_proj = parts.linear("v_proj")
        self.gate_proj = parts.linear("gate_proj") if block.out_gate != "none" else None
        self.o_proj = parts.linear("o_proj", to_residual=True)
        normed = block.qk_norm in ("head", "full")
        self.q_norm = parts.stack_norm("q_norm") if normed else nn.Identity()
        if not block.kv_reuse:
            self.k_norm = parts.stack_norm("k_norm") if normed else nn.Identity()
        self.sinks = parts.filled("sinks", 0.0) if block.sinks else None
        self.index = None
        if block.block_sparse:
            self.index = BlockIndex(block, parts.under("index."))
        self.norm_eps = parts.norm.eps
        self.scale = block.softmax_scale or block.head_dim**-0.5

    def new_cache(self, batch: int) -> TokenCache | None:
        if self.block.kv_reuse:
            return None
        block = self.block
        window, first = block.reach or block.chunk, block.global_tokens
        return TokenCache(batch, window=window, first=first, kv=self.kv)

    def forward(self, x_BTD: Tensor, run: Pass, cache: TokenCache | None = None) -> Tensor:
        block = self.block
        q_BTHK = self._turned(self._normed(self.q_proj(x_BTD), self.q_norm), run)
        if block.temperature is not None:
            q_BTHK = q_BTHK * self._temperature(run, q_BTHK.dtype)
        if not block.kv_reuse:
            named = self._keys_and_values(x_BTD, run)
            if self.index is not None:
                named |= self.index.keys(x_BTD, run)
            run.left[KV] = Held(cache, run, named), block
        held, owner = run.left[KV]
        if self.index is not None:
            o_BTHV, lse_BHT = self._read_blocks(x_BTD, q_BTHK, held, run)
        elif held.plain:
            o_BTHV, lse_BHT = self._read_text(q_BTHK, held, run)
        elif held.newest and block.dilation == 1 and _sight(block) == _sight(owner):
            o_BTHV, lse_BHT = self._read_pages(q_BTHK, held, run)
        else:
            o_BTHV, lse_BHT = self._read_cache(q_BTHK, held, run)
        if self.sinks is not None:
            o_BTHV = attention.with_sinks(o_BTHV, lse_BHT, self.sinks)
        return self.o_proj(self._gated(x_BTD, o_BTHV))

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        heads = (-1, self.block.head_dim)
        if self.block.qk_norm == "full":
            return norm(x).unflatten(-1, heads)
        return norm(x.unflatten(-1, heads))

    def _turned(self, x_BTHK: Tensor, run: Pass) -> Tensor:
        """Rotated by position, then of length one where the norm is `l2`."""
        block = self.block
        if block.rope is not None:
            x_BTHK = rotated(x_BTHK, block.rope, block.rotated, run)
        if block.qk_norm == "l2":
            x_BTHK = normed_without_weight(x_BTHK, self.norm_eps)
        return x_BTHK

    def _temperature(self, run: Pass, dtype: torch.dtype) -> Tensor:
        warm = self.block.temperature
        assert warm is not None, "asked only where there is one"
        floors_BT = (run.positions_BT + 1).div(warm.floor, rounding_mode="floor")
        grown_BT = torch.log1p(floors_BT.double())
        return (1 + warm.scale * grown_BT)[..., None, None].to(dtype)

    def _keys_and_values(self, x_BTD: Tensor, run: Pass) -> dict[str, Tensor]:
        block = self.block
        projected = self.k_proj(x_BTD)
        k_BTGK = self._turned(self._normed(projected, self.k_norm), run)
        v = projected if block.k_eq_v else self.v_proj(x_BTD)
        v_BTGV = v.unflatten(-1, (-1, block.value_dim))
        if block.v_norm:
            v_BTGV = normed_without_weight(v_BTGV, self.norm_eps)
        if block.value_scale != 1:
            v_BTGV = v_BTGV * block.value_scale
        return {"k": quantized_cache(k_BTGK, self.kv), "v": quantized_cache(v_BTGV, self.kv)}

    def _read_text(self, q_BTHK: Tensor, held: Held, run: Pass) -> Any:
        block = self.block
        rule = {"window": block.window, "scale": self.scale, "softcap": block.logit_softcap}
        if block.dilation > 1:
            near = attend_apart(q_BTHK, held["k"], held["v"], block.dilation, run, **rule)
        else:
            segment_ids = _chunks(run, block.chunk)
            if self.sinks is None and not block.global_tokens:
                o_BTHV = attention.attend_without_lse(
                    q_BTHK, held["k"], held["v"], segment_ids=segment_ids, **rule
                )
                return o_BTHV, None
            near = attention.attend(q_BTHK, held["k"], held["v"], segment_ids=segment_ids, **rule)
        return merged([near, self._read_first(q_BTHK, held, run)]) if block.global_tokens else near

    def _read_first(self, q_BTHK: Tensor, held: Held, run: Pass) -> Any:
        """The first tokens of a text, where a window does not hold them."""
        block, positions_BT = self.block, run.positions_BT
        keys = slice(block.global_tokens if run.reads_texts else None)
        near = {"window": block.window, "dilation": block.dilation}
        first_BTC = before(positions_BT, positions_BT, **near, first=block.global_tokens)
        first_BTC &= ~before(positions_BT, positions_BT, **near)
        first_BTC = same_document(run, first_BTC)[:, :, keys]
        return attend_where(
            q_BTHK,
            held["k"][:, keys],
            held["v"][:, keys],
            lambda t: first_BTC[:, None, t],
            scale=self.scale,
            softcap=block.logit_softcap,
        )

    def _read_pages(self, q_BTHK: Tensor, held: Held, run: Pass) -> Any:
        """One new token over what the cache holds: all of it, of a chunk what has been written."""
        block, position_B = self.block, run.positions_BT[:, 0]
        seen_B = position_B % block.chunk if block.chunk else position_B
        pages = held.pages("k", "v", seen_B + 1)
        return attention.attend_cached(q_BTHK, pages, scale=self.scale, softcap=block.logit_softcap)

    def _read_cache(self, q_BTHK: Tensor, held: Held, run: Pass) -> Any:
        block = self.block
        seen_BTC = before(
            run.positions_BT,
            held.positions_BC,
            window=block.window,
            dilation=block.dilation,
            first=block.global_tokens,
            chunk=block.chunk,
        )
        return attend_where(
            q_BTHK,
            held["k"],
            held["v"],
            lambda t: seen_BTC[:, None, t],
            scale=self.scale,
            softcap=block.logit_softcap,
        )

    def _read_blocks(
        self,
        x_BTD: Tensor,
        q_BTHK: Tensor,
        held: Held,
        run: Pass,
    ) -> Any:
        assert self.index is not None, "asked only where blocks are chosen"
        seen_BTC = before(run.positions_BT, held.positions_BC)
        if seen_BTC.shape[1] == seen_BTC.shape[2]:
            seen_BTC = same_document(run, seen_BTC)
        chosen_BGTC = self.index.chosen(x_BTD, q_BTHK, held, seen_BTC, run)
        group = q_BTHK.shape[2] // chosen_BGTC.shape[1]
        return attend_where(
            q_BTHK,
            held["k"],
            held["v"],
            lambda t: (seen_BTC[:, None, t] & chosen_BGTC[:, :, t]).repeat_interleave(group, 1),
            scale=self.scale,
            softcap=self.block.logit_softcap,
        )

    def _gated(self, x_BTD: Tensor, o_BTHV: Tensor) -> Tensor:
        if self.gate_proj is None:
            return o_BTHV.flatten(-2)
        gate = self.gate_proj(x_BTD).sigmoid()
        if self.block.out_gate == "headwise":
            return (o_BTHV * gate[..., None]).flatten(-2)
        return o_BTHV.flatten(-2) * gate


def _sight(block: record.Attention) -> tuple[int | None, ...]:
    return block.window, block.dilation, block.global_tokens, block.chunk


def rotated(x_BTHK: Tensor, rope: Rope, dims: int, run: Pass) -> Tensor:
    """The first `dims` dimensions of each head turned by position."""
    cos_BTP, sin_BTP = rotation(
        rope, run, rotated=dims, head_dim=x_BTHK.shape[-1], dtype=x_BTHK.dtype
    )
    turned = 2 * cos_BTP.shape[-1]
    return rows.rope(x_BTHK, cos_BTP, sin_BTP, rotated=turned, interleaved=rope.interleaved)


def _chunks(run: Pass, chunk: int | None) -> Tensor | None:
    """The documents of a pass, cut into chunks where attention stays inside them."""
    if chunk is None:
        return run.segment_ids_BT
    starts_BT = run.positions_BT % chunk == 0
    return starts_BT.cumsum(1, dtype=torch.int32)


class BlockIndex(nn.Module):
    """Which blocks of keys a query reads: the nearest ones, and those that score highest.

    Without heads of its own the mean of an earlier block's keys is scored by each query head
    (MoBA), with them a block scores as its best key does (MiniMax-M3). Blocks are counted from the
    first token of a document. Nothing is timings through the choice itself.
    """

    def __init__(self, block: record.Attention, parts: Parts) -> None:
        super().__init__()
        assert block.block_sparse is not None, "built only for such a block"
        self.sparse, self.rope = block.block_sparse, block.rope
        if self.sparse.index_heads:
            self.q_proj, self.k_proj = parts.linear("q_proj"), parts.linear("k_proj")
            self.q_norm = parts.stack_norm("q_norm")
            self.k_norm = parts.stack_norm("k_norm")

    def keys(self, x_BTD: Tensor, run: Pass) -> dict[str, Tensor]:
        """What is cached beside keys and values."""
        if not self.sparse.index_heads:
            return {}
        return {"index": self._turned(self.k_norm(self.k_proj(x_BTD))[:, :, None], run)}

    @torch.no_grad()
    def chosen(
        self,
        x_BTD: Tensor,
        q_BTHK: Tensor,
        held: Held,
        seen_BTC: Tensor,
        run: Pass,
    ) -> Tensor:
        """chosen_BITC: for each index head, else each query head, the keys of the chosen blocks."""
        size, heads = self.sparse.block, self.sparse.index_heads
        if heads:
            q = self.q_norm(self.q_proj(x_BTD).unflatten(-1, (heads, -1)))
            q_BTHK, k_BCGK = self._turned(q, run), held["index"]
        else:
            k_BCGK = held["k"]
        group = q_BTHK.shape[2] // k_BCGK.shape[2]
        k_BHKC = k_BCGK.repeat_interleave(group, 2).permute(0, 2, 3, 1)
        score_BITC = q_BTHK.transpose(1, 2).float() @ k_BHKC.float()
        of_key_BC = held.positions_BC.clamp(min=0) // size
        of_query_BT = run.positions_BT // size
        best_BITN = self._block_scores(score_BITC, seen_BTC, of_key_BC, of_query_BT)
        top_BITN = torch.zeros_like(best_BITN, dtype=torch.bool)
        top = best_BITN.topk(min(self.sparse.top_k, best_BITN.shape[-1]), -1).indices
        top_BITN.scatter_(-1, top, best_BITN.gather(-1, top) > -torch.inf)
        index_BITC = of_key_BC[:, None, None].expand_as(score_BITC)
        return top_BITN.gather(-1, index_BITC)

    def _block_scores(
        self, score_BITC: Tensor, seen_BTC: Tensor, of_key_BC: Tensor, of_query_BT: Tensor
    ) -> Tensor:
        blocks = int(max(of_key_BC.max(), of_query_BT.max())) + 1
        shape = (*score_BITC.shape[:-1], blocks)
        index_BITC = of_key_BC[:, None, None].expand_as(score_BITC)
        seen_BITC = seen_BTC[:, None].expand_as(score_BITC)
        if self.sparse.index_heads:
            masked = score_BITC.masked_fill(~seen_BITC, -torch.inf)
            best_BITN = score_BITC.new_full(shape, -torch.inf)
            best_BITN.scatter_reduce_(-1, index_BITC, masked, "amax")
        else:
            total = score_BITC.new_zeros(shape).scatter_add_(-1, index_BITC, score_BITC * seen_BITC)
            count = score_BITC.new_zeros(shape).scatter_add_(-1, index_BITC, seen_BITC.float())
            best_BITN = (total / count).masked_fill(count == 0, -torch.inf)
        block_N = torch.arange(blocks, device=of_key_BC.device)
        back_BTN = of_query_BT[..., None] - block_N
        near_BTN = (back_BTN >= 0) & (back_BTN < self.sparse.local_blocks)
        return best_BITN.masked_fill(near_BTN[:, None], torch.inf)

    def _turned(self, x_BTIK: Tensor, run: Pass) -> Tensor:
        if self.rope is None:
            return x_BTIK
        return rotated(x_BTIK, self.rope, self.rope.rotated(x_BTIK.shape[-1]), run)
