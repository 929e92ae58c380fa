"""Compressed-KV attention: a window as it is, older tokens pooled into few entries."""

# B batch, T tokens, C keys, N pooled entries, S tokens of an entry, D model width, H heads,
# K head width, I heads of the indexer

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.attention import op as attention
from ...kernels.rows import op as rows
from ...search_space.blocks import compressed as record
from ...search_space.operators import NumberFormat
from ..body import Body, Pass
from ..caches import Memory, TokenCache, grown
from ..parts import Parts, normed_without_weight
from ..positions import rotation, tables
from ..precision import decode, encode, quantized_cache
from .masked_attention import Held, attend_where, before, merged
from .mla import best


class CompressedCache(Memory):
    """The window, and for each pooling its entries; what is still open of it is bounded and small."""

    def __init__(self, window: TokenCache, poolings: dict[str, "PoolCache"], every: int) -> None:
        self.window, self.poolings, self.every = window, poolings, every

    def tensors(self) -> list[Tensor]:
        entries = [tensor for pool in self.poolings.values() for tensor in pool.entries]
        return [*self.window.tensors(), *entries]

    def fill_random(self, tokens: int) -> None:
        self.window.fill_random(tokens)
        for pool in self.poolings.values():
            pool.tokens_B = torch.full_like(pool.tokens_B, tokens)
            pool.entries = tuple(
                torch.randn(len(x), tokens // self.every, *x.shape[2:], device=x.device).to(x.dtype)
                for x in pool.entries
            )


class PoolCache:
    """Entries so far, [B, N, K] and in 8 bits a scale each; values and gates of the open group and of
    the one before it."""

    def __init__(self, batch: int) -> None:
        self.tokens_B = torch.zeros(batch, dtype=torch.int64)
        self.entries: tuple[Tensor, ...] = ()
        self.open: tuple[Tensor, Tensor] | None = None
        self.earlier: tuple[Tensor, Tensor] | None = None


class CompressedAttention(Body):
    """The equations of transformers, models/deepseek_v4 (sections 2.3.1 and 2.3.2 of its paper)."""

    fields = frozenset(record.CompressedAttention.model_fields)

    def __init__(self, block: record.CompressedAttention, parts: Parts) -> None:
        super().__init__()
        self.block, self.norm_eps = block, parts.norm.eps
        self.kv: NumberFormat = parts.kv
        self.q_a_proj = parts.linear("q_a_proj")
        self.q_a_norm = parts.rms_norm("q_a_norm")
        self.q_b_proj = parts.linear("q_b_proj")
        self.kv_proj = parts.linear("kv_proj")
        self.kv_norm = parts.rms_norm("kv_norm")
        self.sinks = parts.filled("sinks", 0.0) if block.sinks else None
        self.o_a_proj = parts.linear("o_a_proj")
        self.o_b_proj = parts.linear("o_b_proj", to_residual=True)
        self.compressor = Compressor(block, parts.under("compressor.")) if block.compress else None
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
        q_BTHK = turned(normed_without_weight(q_BTHK, self.norm_eps), block, run)
        kv_BT1K = turned(self.kv_norm(self.kv_proj(x_BTD))[:, :, None], block, run)
        kv_BT1K = quantized_cache(kv_BT1K, self.kv)
        held = Held(cache.window if cache else None, run, {"kv": kv_BT1K})
        if held.plain:
            part = attention.attend(
                q_BTHK,
                held["kv"],
                held["kv"],
                window=block.window,
                scale=self.scale,
                segment_ids=run.segment_ids_BT,
            )
        elif held.newest:
            position_B = run.positions_BT[:, 0]
            pages = held.pages("kv", None, position_B + 1, value_dim=block.head_dim)
            part = attention.attend_cached(q_BTHK, pages, scale=self.scale)
        else:
            seen_BTC = before(run.positions_BT, held.positions_BC, window=block.window)
            part = attend_where(
                q_BTHK, held["kv"], held["kv"], lambda t: seen_BTC[:, None, t], scale=self.scale
            )
        parts = [part]
        if self.compressor is not None:
            parts.append(self.compressor.read(x_BTD, latent, q_BTHK, run, cache, self.scale))
        o_BTHK, lse_BHT = merged(parts) if len(parts) > 1 else part
        if self.sinks is not None:
            o_BTHK = attention.with_sinks(o_BTHK, lse_BHT, self.sinks)
        o_BTHK = turned(o_BTHK, block, run, back=True)  # values carried a rotation
        groups = o_BTHK.flatten(-2).unflatten(-1, (block.o_groups, -1))
        factor, weight = self.o_a_proj.factors(groups)
        mixed = torch.einsum("btgi,goi->btgo", factor, weight.unflatten(0, (block.o_groups, -1)))
        return self.o_b_proj(mixed.flatten(-2).to(x_BTD.dtype))


def turned(
    x_BTHK: Tensor, block: record.CompressedAttention, run: Pass, *, back: bool = False
) -> Tensor:
    """The last dimensions of each head turned by position, or turned back."""
    rope, width = block.rope, x_BTHK.shape[-1]
    if rope is None:
        return x_BTHK
    rotated = min(rope.rotated(block.head_dim), width)
    cos, sin = rotation(
        rope, run, rotated=rotated, head_dim=width, dtype=x_BTHK.dtype, sharpened=False
    )
    return rows.rope(
        x_BTHK,
        cos,
        -sin if back else sin,
        rotated=2 * cos.shape[-1],
        interleaved=rope.interleaved,
        last=True,
    )


class Groups(NamedTuple):
    """Whole groups of tokens, [B, N, S, K] each, and which of them have one before them, [B, N]."""

    values: Tensor
    gates: Tensor
    follows: Tensor


class Pooling(nn.Module):
    """entry = norm(sum over a group of softmax(gate + bias) * value), turned to its first token.

    With `overlap` an entry also weighs the group before its own, by a second set of projections.
    """

    def __init__(self, block: record.CompressedAttention, parts: Parts) -> None:
        super().__init__()
        assert block.compress is not None, "built only where tokens are pooled"
        self.block, self.every = block, block.compress
        self.kv: NumberFormat = "bf16"
        self.kv_proj = parts.linear("kv_proj")
        self.gate_proj = parts.linear("gate_proj")
        self.kv_norm = parts.rms_norm("kv_norm")
        self.position_bias = parts.filled("position_bias", 0.0)

    def forward(self, x_BTD: Tensor, run: Pass, cache: PoolCache | None) -> tuple[Tensor, Tensor]:
        """(entries_BNK, closed_BTN): all entries so far, and which are closed at each token."""
        values, gates = self.kv_proj(x_BTD), self.gate_proj(x_BTD)
        if run.segment_ids_BT is not None:
            groups, closed_BTN, first_BN = self._groups_of_documents(values, gates, run)
            return self._pooled(groups, first_BN, x_BTD.dtype), closed_BTN
        if cache is None or cache.open is None:
            entries_BNK = self._entries_of_rows(values, gates, x_BTD.dtype)
            if cache is not None:
                self._keep(cache, values, gates, entries_BNK, run)
        else:
            for t in range(x_BTD.shape[1]):
                valid_B = None if run.valid_BT is None else run.valid_BT[:, t]
                self._take(cache, values[:, t], gates[:, t], valid_B, x_BTD.dtype)
            entries_BNK = self._decoded(cache.entries, x_BTD.dtype)
        number_N = torch.arange(entries_BNK.shape[1], device=x_BTD.device)
        return entries_BNK, number_N < ((run.positions_BT + 1) // self.every)[..., None]

    def _entries_of_rows(self, values: Tensor, gates: Tensor, dtype: torch.dtype) -> Tensor:
        groups = self._groups_of_rows(values, gates)
        number_N = torch.arange(groups.values.shape[1], device=values.device)
        first_BN = (number_N * self.every).expand(len(values), -1)
        return self._pooled(groups, first_BN, dtype)

    def _keep(
        self, cache: PoolCache, values: Tensor, gates: Tensor, entries_BNK: Tensor, run: Pass
    ) -> None:
        """Start a cache with a text: its entries, and the last two groups of each row."""
        B, T, S = *values.shape[:2], self.every
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
        cache.earlier = _at(values, back), _at(gates, back)

    def _take(
        self,
        cache: PoolCache,
        value_BK: Tensor,
        gate_BK: Tensor,
        valid_B: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """One more token a row; the rows whose group it closes get an entry."""
        assert cache.open is not None, "started by a text"
        assert cache.earlier is not None, "started by a text"
        B, S = len(value_BK), self.every
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
        values, gates = (torch.stack(p, 1) for p in zip(cache.earlier, cache.open, strict=True))
        follows = torch.stack([torch.zeros_like(closed_B), number_B > 0], 1)
        pair = Groups(values, gates, follows)
        first_BN = torch.stack([(number_B - 1).clamp(min=0), number_B], 1) * S
        entry_BK = self._pooled(pair, first_BN, dtype)[:, 1]
        room = int(number_B.max()) + 1
        if cache.entries[0].shape[1] < room:
            cache.entries = tuple(grown(x, room, 0) for x in cache.entries)
        for held, new in zip(cache.entries, self._encoded(entry_BK), strict=True):
            held[row_B[closed_B], number_B[closed_B]] = new[closed_B]
        for earlier, held in zip(cache.earlier, cache.open, strict=True):
            earlier[closed_B] = held[closed_B]

    def _groups_of_rows(self, values: Tensor, gates: Tensor) -> Groups:
        usable = values.shape[1] // self.every * self.every
        values, gates = (x[:, :usable].unflatten(1, (-1, self.every)) for x in (values, gates))
        follows = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        follows[:, :1] = False
        return Groups(values, gates, follows)

    def _groups_of_documents(
        self, values: Tensor, gates: Tensor, run: Pass
    ) -> tuple[Groups, Tensor, Tensor]:
        """(groups, closed_BTN, first_BN) where rows are packed: groups begin anew with each
        document."""
        position, document = run.positions_BT, run.segment_ids_BT
        assert document is not None, "asked only for packed rows"
        B, T = position.shape
        number = position // self.every
        last = (position + 1) % self.every == 0  # a group closes here
        N = int(last.sum(1).max())
        index = torch.where(last, last.cumsum(1) - 1, N)
        closing = position.new_zeros(B, N + 1).scatter_(
            1, index, torch.arange(T, device=position.device).expand(B, T)
        )
        closing, exists = (
            closing[:, :N],
            position.new_zeros(B, N + 1).scatter_(1, index, last.long())[:, :N] > 0,
        )
        member = closing[..., None] - torch.arange(self.every - 1, -1, -1, device=position.device)
        member = member.clamp(min=0)
        flat = member.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
        values, gates = (x.gather(1, flat).unflatten(1, (N, self.every)) for x in (values, gates))
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
            before_v, own_v = values.chunk(2, -1)
            before_g, own_g = gates.chunk(2, -1)
            before_v, before_g = (
                torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) for x in (before_v, before_g)
            )
            before_g = before_g.masked_fill(~follows[..., None, None], -torch.inf)
            values, gates = torch.cat([before_v, own_v], 2), torch.cat([before_g, own_g], 2)
        weights = gates.softmax(2).to(values.dtype)
        pooled_BNK = self.kv_norm((values * weights).sum(2)).to(dtype)
        rope = self.block.rope
        if pooled_BNK.shape[1] == 0:
            return pooled_BNK
        if rope is None:
            return quantized_cache(pooled_BNK, self.kv)
        width = pooled_BNK.shape[-1]
        wide = torch.promote_types(dtype, torch.float32)
        rotated = min(rope.rotated(self.block.head_dim), width)
        cos, sin = tables(
            rope, first_BN, rotated=rotated, head_dim=width, dtype=wide, sharpened=False
        )
        turned = rows.rope(
            pooled_BNK[:, :, None],
            cos,
            sin,
            rotated=rotated,
            interleaved=rope.interleaved,
            last=True,
        )
        return quantized_cache(turned[:, :, 0], self.kv)

    def _encoded(self, entries: Tensor) -> tuple[Tensor, ...]:
        return (entries,) if self.kv == "bf16" else encode(entries, (-1,), self.kv)

    def _decoded(self, entries: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return entries[0] if self.kv == "bf16" else decode(*entries).to(dtype)


class Compressor(Pooling):
    """One entry for each closed group of tokens; an indexer may choose among them."""

    def __init__(self, block: record.CompressedAttention, parts: Parts) -> None:
        super().__init__(block, parts)
        self.kv = parts.kv
        self.indexer = EntryIndexer(block, parts.under("indexer.")) if block.indexer else None

    def read(
        self,
        x_BTD: Tensor,
        latent: Tensor,
        q_BTHK: Tensor,
        run: Pass,
        cache: CompressedCache | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """(o_BTHK, lse_BHT) of attention over the entries that were closed before a query."""
        pools = cache.poolings if cache else {}
        entries_BNK, closed_BTN = self(x_BTD, run, pools.get("entries"))
        index_BTS = None
        if self.indexer is not None:
            keys_BNK, _ = self.indexer(x_BTD, run, pools.get("index"))
            index_BTS = self.indexer.chosen(x_BTD, latent, keys_BNK, closed_BTN, run)
        if index_BTS is not None:
            return attention.attend_selected(
                q_BTHK, entries_BNK, index_BTS, v_dim=entries_BNK.shape[-1], scale=scale
            )
        if entries_BNK.shape[1] == 0:
            nothing = q_BTHK.new_full(q_BTHK.shape[:3], -torch.inf, dtype=torch.float32)
            return torch.zeros_like(q_BTHK), nothing.transpose(1, 2)
        entries_BN1K = entries_BNK[:, :, None]
        return attend_where(
            q_BTHK, entries_BN1K, entries_BN1K, lambda t: closed_BTN[:, None, t], scale=scale
        )


class EntryIndexer(Pooling):
    """Entries of its own, narrower ones, that score which of the others a query reads."""

    def __init__(self, block: record.CompressedAttention, parts: Parts) -> None:
        super().__init__(block, parts)
        self.q_b_proj = parts.linear("q_b_proj")
        self.head_proj = parts.linear("head_proj")

    @torch.no_grad()
    def chosen(
        self, x_BTD: Tensor, latent: Tensor, keys_BNK: Tensor, closed_BTN: Tensor, run: Pass
    ) -> Tensor | None:
        """index_BTS of the best `top_k` closed entries for each query; None if all are read."""
        index = self.block.indexer
        assert index is not None, "built only where entries are chosen"
        q_BTIK = turned(self.q_b_proj(latent).unflatten(-1, (index.heads, -1)), self.block, run)
        score_BTN = attention.index_scores(q_BTIK, keys_BNK, self.head_proj(x_BTD))
        return best(score_BTN, closed_BTN, index.top_k)


def _at(x_BTK: Tensor, place_BS: Tensor) -> Tensor:
    """x_BSK at places of each row; what lies outside the text is never looked at."""
    place_BS = place_BS.clamp(0, x_BTK.shape[1] - 1)
    return x_BTK.gather(1, place_BS[..., None].expand(-1, -1, x_BTK.shape[2])).clone()
