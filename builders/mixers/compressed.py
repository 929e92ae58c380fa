"""Compressed-KV attention: a window of tokens, and pooled entries for the older ones."""

# B batch, T tokens, C keys, N pooled entries, S tokens per entry, D model width, H heads,
# K head width, I heads of the indexer

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.attention import op as attention
from ...kernels.rows import op as rows
from ...search_space.blocks import compressed as record
from ...search_space.operators import NumberFormat
from ..body import Body, Pass
from ..caches import KeyValues, Memory, TokenCache, grown
from ..layers import rms_normalized
from ..parameters import Parameters
from ..positions import rotary_tables, tables_at
from ..precision import decode, encode, quantized_cache
from .masked_attention import causal_mask, masked_attention, merge_attentions
from .mla import top_k_indices


class CompressedCache(Memory):
    """The window's tokens and the entries of each pooling.

    `tensors` leaves out the values of the open group, whose size is constant.
    """

    def __init__(self, window: TokenCache, poolings: dict[str, "PoolCache"], group: int) -> None:
        self.window, self.poolings, self.group = window, poolings, group

    def tensors(self) -> list[Tensor]:
        entries = [tensor for pool in self.poolings.values() for tensor in pool.entries]
        return [*self.window.tensors(), *entries]

    def fill_random(self, tokens: int) -> None:
        self.window.fill_random(tokens)
        for pool in self.poolings.values():
            pool.tokens_B = torch.full_like(pool.tokens_B, tokens)
            pool.entries = tuple(
                torch.randn(len(x), tokens // self.group, *x.shape[2:], device=x.device).to(x.dtype)
                for x in pool.entries
            )


class PoolCache:
    """Entries so far, [B, N, K] (in 8 bits values and scales), and the groups being filled.

    `open` and `previous` are (values, gates), [B, S, K] each, of the open group and the one before.
    """

    def __init__(self, batch: int) -> None:
        self.tokens_B = torch.zeros(batch, dtype=torch.int64)
        self.entries: tuple[Tensor, ...] = ()
        self.open: tuple[Tensor, Tensor] | None = None
        self.previous: tuple[Tensor, Tensor] | None = None


class CompressedAttention(Body):
    """DeepSeek-V4's attention (sections 2.3.1 and 2.3.2 of its paper; transformers, deepseek_v4).

    One key of width K per token serves all H heads and is its own value. A query attends to the
    last `window` tokens and to pooled entries of closed groups of `compress` tokens; the output is
    rotated back by position, then projected in `o_groups` groups.
    """

    fields = frozenset(record.CompressedAttention.model_fields)

    def __init__(self, block: record.CompressedAttention, params: Parameters) -> None:
        super().__init__()
        self.block, self.norm_eps = block, params.norm.eps
        self.kv: NumberFormat = params.kv
        self.q_a_proj = params.linear("q_a_proj")
        self.q_a_norm = params.rms_norm("q_a_norm")
        self.q_b_proj = params.linear("q_b_proj")
        self.kv_proj = params.linear("kv_proj")
        self.kv_norm = params.rms_norm("kv_norm")
        self.sinks = params.constant("sinks", 0.0) if block.sinks else None
        self.o_a_proj = params.linear("o_a_proj")
        self.o_b_proj = params.linear("o_b_proj", to_residual=True)
        self.compressor = Compressor(block, params.under("compressor.")) if block.compress else None
        self.scale = block.head_dim**-0.5

    def new_cache(self, batch: int) -> CompressedCache:
        window, group = TokenCache(batch, window=self.block.window, kv=self.kv), self.block.compress
        names = (
            () if group is None else ("entries", "index") if self.block.indexer else ("entries",)
        )
        return CompressedCache(window, {name: PoolCache(batch) for name in names}, group or 1)

    def forward(self, x_BTD: Tensor, run: Pass, cache: CompressedCache | None = None) -> Tensor:
        block = self.block
        latent = self.q_a_norm(self.q_a_proj(x_BTD))
        q_BTHK = self.q_b_proj(latent).unflatten(-1, (block.heads, -1))
        q_BTHK = rope_last(rms_normalized(q_BTHK, self.norm_eps), block, run)
        kv_BT1K = rope_last(self.kv_norm(self.kv_proj(x_BTD))[:, :, None], block, run)
        kv_BT1K = quantized_cache(kv_BT1K, self.kv)
        window = cache.window if cache else None
        keys = KeyValues(window, run.positions_BT, run.valid_BT, {"kv": kv_BT1K})
        if keys.prefill:
            windowed = attention.attend(
                q_BTHK,
                keys["kv"],
                keys["kv"],
                window=block.window,
                scale=self.scale,
                segment_ids=run.segment_ids_BT,
            )
        elif keys.decode:
            position_B = run.positions_BT[:, 0]
            pages = keys.pages("kv", None, position_B + 1, value_dim=block.head_dim)
            windowed = attention.attend_cached(q_BTHK, pages, scale=self.scale)
        else:
            mask_BTC = causal_mask(run.positions_BT, keys.positions_BC, window=block.window)
            windowed = masked_attention(
                q_BTHK, keys["kv"], keys["kv"], lambda t: mask_BTC[:, None, t], scale=self.scale
            )
        o_BTHK, lse_BHT = windowed
        if self.compressor is not None:
            pooled = self.compressor.attend(x_BTD, latent, q_BTHK, run, cache, self.scale)
            o_BTHK, lse_BHT = merge_attentions([windowed, pooled])
        if self.sinks is not None:
            o_BTHK = attention.with_sinks(o_BTHK, lse_BHT, self.sinks)
        o_BTHK = rope_last(o_BTHK, block, run, inverse=True)  # the values were rotated too
        groups = o_BTHK.flatten(-2).unflatten(-1, (block.o_groups, -1))
        factor, weight = self.o_a_proj.factors(groups)
        mixed = torch.einsum("btgi,goi->btgo", factor, weight.unflatten(0, (block.o_groups, -1)))
        return self.o_b_proj(mixed.flatten(-2).to(x_BTD.dtype))


def rope_last(
    x_BTHK: Tensor, block: record.CompressedAttention, run: Pass, *, inverse: bool = False
) -> Tensor:
    """The last dimensions of each head rotated by position, or rotated back."""
    rope, width = block.rope, x_BTHK.shape[-1]
    if rope is None:
        return x_BTHK
    dims = min(rope.rotated(block.head_dim), width)
    cos, sin = rotary_tables(
        rope, run, rotated=dims, head_dim=width, dtype=x_BTHK.dtype, attention_factor=False
    )
    return rows.rope(
        x_BTHK,
        cos,
        -sin if inverse else sin,
        rotated=2 * cos.shape[-1],
        interleaved=rope.interleaved,
        last=True,
    )


class Groups(NamedTuple):
    """Closed groups of tokens, [B, N, S, K] each; `follows` [B, N]: one of the text precedes it."""

    values: Tensor
    gates: Tensor
    follows: Tensor


class Pooling(nn.Module):
    """entry = rope(norm(sum over a group of softmax(gate + bias) * value)), at its first token.

    With `overlap` the softmax also runs over the previous group, by a second set of projections.
    """

    def __init__(self, block: record.CompressedAttention, params: Parameters) -> None:
        super().__init__()
        assert block.compress is not None, "built only for blocks that pool"
        self.block, self.group = block, block.compress
        self.kv: NumberFormat = "bf16"
        self.kv_proj = params.linear("kv_proj")
        self.gate_proj = params.linear("gate_proj")
        self.kv_norm = params.rms_norm("kv_norm")
        self.position_bias = params.constant("position_bias", 0.0)

    def forward(self, x_BTD: Tensor, run: Pass, cache: PoolCache | None) -> tuple[Tensor, Tensor]:
        """(entries_BNK, closed_BTN): all entries so far, and whether each is closed at a token."""
        values, gates = self.kv_proj(x_BTD), self.gate_proj(x_BTD)
        if run.segment_ids_BT is not None:
            groups, closed_BTN, first_BN = self._groups_of_documents(values, gates, run)
            return self._pooled(groups, first_BN, x_BTD.dtype), closed_BTN
        if cache is None or cache.open is None:
            entries_BNK = self._entries_of_rows(values, gates, x_BTD.dtype)
            if cache is not None:
                self._fill(cache, values, gates, entries_BNK, run)
        else:
            for t in range(x_BTD.shape[1]):
                valid_B = None if run.valid_BT is None else run.valid_BT[:, t]
                self._append(cache, values[:, t], gates[:, t], valid_B, x_BTD.dtype)
            entries_BNK = self._decoded(cache.entries, x_BTD.dtype)
        number_N = torch.arange(entries_BNK.shape[1], device=x_BTD.device)
        return entries_BNK, number_N < ((run.positions_BT + 1) // self.group)[..., None]

    def _entries_of_rows(self, values: Tensor, gates: Tensor, dtype: torch.dtype) -> Tensor:
        groups = self._groups_of_rows(values, gates)
        number_N = torch.arange(groups.values.shape[1], device=values.device)
        first_BN = (number_N * self.group).expand(len(values), -1)
        return self._pooled(groups, first_BN, dtype)

    def _fill(
        self, cache: PoolCache, values: Tensor, gates: Tensor, entries_BNK: Tensor, run: Pass
    ) -> None:
        """Fill an empty cache from whole texts: entries, and the last two groups of each row."""
        B, T, S = *values.shape[:2], self.group
        cache.tokens_B = (
            torch.full((B,), T, device=values.device)
            if run.valid_BT is None
            else run.valid_BT.sum(1)
        )
        cache.entries = self._encoded(entries_BNK)
        start_B = cache.tokens_B // S * S
        step_S = torch.arange(S, device=values.device)
        cache.open = _at(values, start_B[:, None] + step_S), _at(gates, start_B[:, None] + step_S)
        back = start_B[:, None] - S + step_S
        cache.previous = _at(values, back), _at(gates, back)

    def _append(
        self,
        cache: PoolCache,
        value_BK: Tensor,
        gate_BK: Tensor,
        valid_B: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """Append one token per row; rows whose group it closes get an entry."""
        assert cache.open is not None, "filled by a prefill"
        assert cache.previous is not None, "filled by a prefill"
        B, S = len(value_BK), self.group
        if valid_B is None:
            valid_B = torch.ones(B, dtype=torch.bool, device=value_BK.device)
        row_B, place_B = torch.arange(B, device=value_BK.device), cache.tokens_B % S
        for held, new in zip(cache.open, (value_BK, gate_BK), strict=True):
            held[row_B, place_B] = torch.where(valid_B[:, None], new, held[row_B, place_B])
        number_B = cache.tokens_B // S
        cache.tokens_B = cache.tokens_B + valid_B
        closed_B = valid_B & (place_B == S - 1)
        if not closed_B.any():
            return
        values, gates = (torch.stack(p, 1) for p in zip(cache.previous, cache.open, strict=True))
        follows = torch.stack([torch.zeros_like(closed_B), number_B > 0], 1)
        pair = Groups(values, gates, follows)
        first_BN = torch.stack([(number_B - 1).clamp(min=0), number_B], 1) * S
        entry_BK = self._pooled(pair, first_BN, dtype)[:, 1]
        room = int(number_B.max()) + 1
        if cache.entries[0].shape[1] < room:
            cache.entries = tuple(grown(x, room, 0) for x in cache.entries)
        for held, new in zip(cache.entries, self._encoded(entry_BK), strict=True):
            held[row_B[closed_B], number_B[closed_B]] = new[closed_B]
        for previous, held in zip(cache.previous, cache.open, strict=True):
            previous[closed_B] = held[closed_B]

    def _groups_of_rows(self, values: Tensor, gates: Tensor) -> Groups:
        usable = values.shape[1] // self.group * self.group
        values, gates = (x[:, :usable].unflatten(1, (-1, self.group)) for x in (values, gates))
        follows = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        follows[:, :1] = False
        return Groups(values, gates, follows)

    def _groups_of_documents(
        self, values: Tensor, gates: Tensor, run: Pass
    ) -> tuple[Groups, Tensor, Tensor]:
        """(groups, closed_BTN, first_BN) of packed rows: groups count from each document."""
        position, document = run.positions_BT, run.segment_ids_BT
        assert document is not None, "called for packed rows"
        B, T = position.shape
        number = position // self.group
        last = (position + 1) % self.group == 0  # of a group
        N = int(last.sum(1).max())
        index = torch.where(last, last.cumsum(1) - 1, N)
        closing = position.new_zeros(B, N + 1).scatter_(
            1, index, torch.arange(T, device=position.device).expand(B, T)
        )
        closing, exists = (
            closing[:, :N],
            position.new_zeros(B, N + 1).scatter_(1, index, last.long())[:, :N] > 0,
        )
        member = closing[..., None] - torch.arange(self.group - 1, -1, -1, device=position.device)
        member = member.clamp(min=0)
        flat = member.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
        values, gates = (x.gather(1, flat).unflatten(1, (N, self.group)) for x in (values, gates))
        of_group = document.gather(1, closing)
        follows = number.gather(1, closing) > 0
        same = document[:, :, None] == of_group[:, None]
        closed = same & (closing[:, None] <= torch.arange(T, device=position.device)[:, None])
        first = position.gather(1, member[..., 0])
        return Groups(values, gates, follows), closed & exists[:, None], first

    def _pooled(self, groups: Groups, first_BN: Tensor, dtype: torch.dtype) -> Tensor:
        values, gates, follows = groups
        gates = gates.to(self.position_bias.dtype) + self.position_bias
        if self.block.overlap:
            previous_v, own_v = values.chunk(2, -1)
            previous_g, own_g = gates.chunk(2, -1)
            previous_v, previous_g = (
                torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
                for x in (previous_v, previous_g)
            )
            previous_g = previous_g.masked_fill(~follows[..., None, None], -torch.inf)
            values, gates = torch.cat([previous_v, own_v], 2), torch.cat([previous_g, own_g], 2)
        weights = gates.softmax(2).to(values.dtype)
        pooled_BNK = self.kv_norm((values * weights).sum(2)).to(dtype)
        rope = self.block.rope
        if pooled_BNK.shape[1] == 0:
            return pooled_BNK
        if rope is None:
            return quantized_cache(pooled_BNK, self.kv)
        width = pooled_BNK.shape[-1]
        fp32 = torch.promote_types(dtype, torch.float32)
        dims = min(rope.rotated(self.block.head_dim), width)
        cos, sin = tables_at(
            rope, first_BN, rotated=dims, head_dim=width, dtype=fp32, attention_factor=False
        )
        rotated_BN1K = rows.rope(
            pooled_BNK[:, :, None],
            cos,
            sin,
            rotated=dims,
            interleaved=rope.interleaved,
            last=True,
        )
        return quantized_cache(rotated_BN1K[:, :, 0], self.kv)

    def _encoded(self, entries: Tensor) -> tuple[Tensor, ...]:
        return (entries,) if self.kv == "bf16" else encode(entries, (-1,), self.kv)

    def _decoded(self, entries: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return entries[0] if self.kv == "bf16" else decode(*entries).to(dtype)


class Compressor(Pooling):
    """Attention over the pooled entries, all or those that an indexer selects."""

    def __init__(self, block: record.CompressedAttention, params: Parameters) -> None:
        super().__init__(block, params)
        self.kv = params.kv
        self.indexer = EntryIndexer(block, params.under("indexer.")) if block.indexer else None

    def attend(
        self,
        x_BTD: Tensor,
        latent: Tensor,
        q_BTHK: Tensor,
        run: Pass,
        cache: CompressedCache | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """(o_BTHK, lse_BHT) over the entries that are closed at the query."""
        pools = cache.poolings if cache else {}
        entries_BNK, closed_BTN = self(x_BTD, run, pools.get("entries"))
        index_BTS = None
        if self.indexer is not None:
            keys_BNK, _ = self.indexer(x_BTD, run, pools.get("index"))
            index_BTS = self.indexer.selected(x_BTD, latent, keys_BNK, closed_BTN, run)
        if index_BTS is not None:
            return attention.attend_selected(
                q_BTHK, entries_BNK, index_BTS, v_dim=entries_BNK.shape[-1], scale=scale
            )
        if entries_BNK.shape[1] == 0:
            lse_BTH = q_BTHK.new_full(q_BTHK.shape[:3], -torch.inf, dtype=torch.float32)
            return torch.zeros_like(q_BTHK), lse_BTH.transpose(1, 2)
        entries_BN1K = entries_BNK[:, :, None]
        return masked_attention(
            q_BTHK, entries_BN1K, entries_BN1K, lambda t: closed_BTN[:, None, t], scale=scale
        )


class EntryIndexer(Pooling):
    """Selects entries per query by scores of narrower entries of its own (as `TokenIndexer`)."""

    def __init__(self, block: record.CompressedAttention, params: Parameters) -> None:
        super().__init__(block, params)
        self.q_b_proj = params.linear("q_b_proj")
        self.head_proj = params.linear("head_proj")

    @torch.no_grad()
    def selected(
        self, x_BTD: Tensor, latent: Tensor, keys_BNK: Tensor, closed_BTN: Tensor, run: Pass
    ) -> Tensor | None:
        """index_BTS of the `top_k` best closed entries of each query; None if all are read."""
        index = self.block.indexer
        assert index is not None, "built only for blocks with an indexer"
        q_BTIK = rope_last(self.q_b_proj(latent).unflatten(-1, (index.heads, -1)), self.block, run)
        score_BTN = attention.index_scores(q_BTIK, keys_BNK, self.head_proj(x_BTD))
        return top_k_indices(score_BTN, closed_BTN, index.top_k)


def _at(x_BTK: Tensor, place_BS: Tensor) -> Tensor:
    """x_BSK at places of each row, clamped to the text."""
    place_BS = place_BS.clamp(0, x_BTK.shape[1] - 1)
    return x_BTK.gather(1, place_BS[..., None].expand(-1, -1, x_BTK.shape[2])).clone()
