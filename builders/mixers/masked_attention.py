"""Attention where a mask says what is seen: cached tokens, chosen tokens, pooled entries."""

# B batch, T tokens, C keys, H query heads, G key/value heads, R = H / G, K key width, V value width

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.attention import op as attention
from ...kernels.attention.cache import PagedCache
from ..body import Pass
from ..caches import TokenCache

LARGEST_TILE = 2**24  # logits at once: more queries than fit take several turns


def attend_where(
    q_BTHK: Tensor,
    k_BCGK: Tensor,
    v_BCGV: Tensor,
    seen: Callable[[slice], Tensor],
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT) of softmax attention; `seen(queries)` is a mask of [B, 1 or H, t, C].

    A query that sees nothing reads zeros and has a log-sum-exp of minus infinity. fp32 or wider
    inside.
    """
    B, T, H, _ = q_BTHK.shape
    C = k_BCGK.shape[1]
    at_once = max(1, LARGEST_TILE // max(1, B * H * C))
    parts = [
        _tile(q_BTHK[:, t], k_BCGK, v_BCGV, seen(t), scale, softcap)
        for start in range(0, T, at_once)
        for t in [slice(start, min(T, start + at_once))]
    ]
    return torch.cat([o for o, _ in parts], 1), torch.cat([lse for _, lse in parts], 2)


def _tile(
    q_BTHK: Tensor,
    k_BCGK: Tensor,
    v_BCGV: Tensor,
    seen_BHTC: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    G = k_BCGK.shape[2]
    q_BGRTK = q_BTHK.transpose(1, 2).unflatten(1, (G, -1)).to(wide)
    k_BG1KC = k_BCGK.permute(0, 2, 3, 1)[:, :, None].to(wide)
    logits_BHTC = (q_BGRTK @ k_BG1KC).flatten(1, 2) * scale
    if softcap is not None:
        logits_BHTC = softcap * torch.tanh(logits_BHTC / softcap)
    logits_BHTC = logits_BHTC.masked_fill(~seen_BHTC, -torch.inf)
    lse_BHT = logits_BHTC.logsumexp(-1)
    # a row of minus infinities has no softmax: its pivot is zero, and so are its weights
    pivot_BHT = lse_BHT.masked_fill(lse_BHT == -torch.inf, 0.0)
    weights_BHTC = (logits_BHTC - pivot_BHT[..., None]).exp()
    v_BG1CV = v_BCGV.transpose(1, 2)[:, :, None].to(wide)
    o_BHTV = (weights_BHTC.unflatten(1, (G, -1)) @ v_BG1CV).flatten(1, 2)
    return o_BHTV.transpose(1, 2).to(q_BTHK.dtype), lse_BHT


def attend_apart(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    dilation: int,
    run: Pass,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT) of a window whose keys lie `dilation` apart: so many texts, interleaved."""
    B, T = q_BTHK.shape[:2]

    def parted(x: Tensor) -> Tensor:
        padding = (0, 0) * (x.ndim - 2) + (0, -T % dilation)
        return F.pad(x, padding).unflatten(1, (-1, dilation)).transpose(1, 2).flatten(0, 1)

    segment_ids = None
    if run.segment_ids_BT is not None:  # what is padded belongs to the last one
        last_B1 = run.segment_ids_BT[:, -1:]
        segment_ids = parted(run.segment_ids_BT - last_B1) + last_B1.repeat_interleave(dilation, 0)
    o_NSHV, lse_NHS = attention.attend(
        *(parted(x) for x in (q_BTHK, k_BTGK, v_BTGV)),
        window=window,
        scale=scale,
        softcap=softcap,
        segment_ids=segment_ids,
    )
    o_BTHV = o_NSHV.unflatten(0, (B, dilation)).transpose(1, 2).flatten(1, 2)[:, :T]
    lse_BHT = lse_NHS.unflatten(0, (B, dilation)).permute(0, 2, 3, 1).flatten(2)[..., :T]
    return o_BTHV, lse_BHT


def merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT) of attention over the union of disjoint sets of keys."""
    lse_NBHT = torch.stack([lse for _, lse in parts])
    lse_BHT = lse_NBHT.logsumexp(0)
    pivot_BHT = lse_BHT.masked_fill(lse_BHT == -torch.inf, 0.0)
    share_NBTH1 = (lse_NBHT - pivot_BHT).exp().transpose(2, 3)[..., None]
    o_NBTHV = torch.stack([o for o, _ in parts])
    return (o_NBTHV * share_NBTH1.to(o_NBTHV.dtype)).sum(0), lse_BHT


def before(
    query_BT: Tensor,
    key_BC: Tensor,
    *,
    window: int | None = None,
    dilation: int = 1,
    first: int = 0,
    chunk: int | None = None,
) -> Tensor:
    """seen_BTC by position: none that is later, none beyond the window, none of another chunk.

    The keys of a window lie `dilation` apart; the `first` ones stay in sight.
    """
    query_BT1, key_B1C = query_BT[..., None], key_BC[:, None]
    seen = (key_B1C >= 0) & (key_B1C <= query_BT1)
    if window is not None:
        back = query_BT1 - key_B1C
        seen &= ((back < window * dilation) & (back % dilation == 0)) | (key_B1C < first)
    if chunk is not None:
        seen &= key_B1C // chunk == query_BT1 // chunk
    return seen


def same_document(run: Pass, seen_BTC: Tensor) -> Tensor:
    """`seen` among the tokens of one pass, segment_ids kept apart."""
    if run.segment_ids_BT is None:
        return seen_BTC
    return seen_BTC & (run.segment_ids_BT[:, :, None] == run.segment_ids_BT[:, None])


class Held:
    """All tokens that a pass may look at, by name, and positions_BC; the cache keeps the new ones.

    `plain`: they are those of the pass. `newest`: they are what the cache holds, one new token a
    row among them. Otherwise the new ones stand behind what was held before, since they may push
    out what the first of them still sees.
    """

    def __init__(self, cache: TokenCache | None, run: Pass, named: dict[str, Tensor]) -> None:
        self.cache = cache
        self.plain = cache is None or cache.empty
        self.newest = not self.plain and run.positions_BT.shape[1] == 1 and run.valid_BT is None
        self.positions_BC = _valid_positions(run)
        self._named = named
        if cache is None:
            return
        if not self.plain and not self.newest:
            self._named = {n: torch.cat([cache.read(n), x], 1) for n, x in named.items()}
            self.positions_BC = torch.cat([cache.positions(), self.positions_BC], 1)
        cache.append(run, **named)
        if self.newest:
            self.positions_BC = cache.positions()

    def __getitem__(self, name: str) -> Tensor:
        if self.newest:
            assert self.cache is not None, "only a cache has a newest token"
            return self.cache.read(name)
        return self._named[name]

    def pages(
        self, key: str, value: str | None, lengths_B: Tensor, *, value_dim: int | None = None
    ) -> PagedCache:
        """What the cache holds of each row, as the decoding kernel reads it."""
        assert self.cache is not None, "asked only for a newest token"
        room = self.cache.room
        lengths_B = lengths_B if room is None else lengths_B.clamp(max=room)
        return self.cache.pages(key, value, lengths_B, value_dim=value_dim)


def _valid_positions(run: Pass) -> Tensor:
    if run.valid_BT is None:
        return run.positions_BT
    return torch.where(run.valid_BT, run.positions_BT, -1)
