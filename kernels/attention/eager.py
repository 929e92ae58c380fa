"""Torch implementation of attention: PyTorch's fused operator where it fits, else block by block.

Neither holds all scores of a sequence at once; with a window the work grows with T, not T^2.
"""

# B batch, T tokens, H query heads, G key/value heads, R = H / G, K key width, V value width,
# C queries of a block, S keys that they may see, N blocks, Q new tokens of a cached sequence,
# M = R Q of them that share a key head

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .cache import PagedCache, in_order

SMALLEST_BAND = 64  # a narrower one makes matrices too small to be worth a call
LONGEST_MASK = 512  # of T x T; beyond, the masked half costs more than fusion saves
BLOCK = 128  # queries whose scores are held at once
GATHERED = 2**24  # elements of gathered keys, or of scores, at once

# (begin, end) of some queries -> (the keys of which they see any, the mask [B | 1, G | 1, C, S])
Seen = Callable[[int, int], tuple[slice, Tensor]]


def attend_without_lse(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    segment_ids: Tensor | None,
) -> Tensor:
    """By PyTorch's fused operator, unless there is a soft cap or a long mask."""
    (T, K), V = (q_BTHK.shape[1], q_BTHK.shape[3]), v_BTGV.shape[3]
    rule = {"causal": causal, "window": window, "segment_ids": segment_ids}
    whole = segment_ids is None and (window is None or window >= T)
    banded = segment_ids is None and window is not None and 2 * max(window, SMALLEST_BAND) < T
    if softcap is not None or not (whole or banded or T <= LONGEST_MASK):
        return attend(q_BTHK, k_BTGK, v_BTGV, scale=scale, softcap=softcap, **rule)[0]
    # the fused operator takes one width for keys and values
    padded = (F.pad(x, (0, max(K, V) - x.shape[3])) for x in (q_BTHK, k_BTGK, v_BTGV))
    q, k, v = (x.transpose(1, 2) for x in padded)
    if whole:
        o = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
    elif banded and window is not None:
        o = _banded(q, k, v, window, scale)
    else:
        mask = _seen(0, T, T=T, device=q.device, **rule)[1]
        o = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return o[..., :V].transpose(1, 2)


def _banded(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, scale: float) -> Tensor:
    """Sliding window: each block of queries against its own and the previous block of keys."""
    B, _, T, _ = q_BHTK.shape
    C = max(window, SMALLEST_BAND)

    def blocks(x_BHTK: Tensor) -> Tensor:  # N first and B with the heads: all of B share a mask
        x = F.pad(x_BHTK, (0, 0, 0, -T % C))
        return x.flatten(0, 1).unflatten(1, (-1, C)).transpose(0, 1)

    def with_previous(x_NGCK: Tensor) -> Tensor:
        return torch.cat([F.pad(x_NGCK[:-1], (0, 0, 0, 0, 0, 0, 1, 0)), x_NGCK], 2)

    q, k, v = blocks(q_BHTK), with_previous(blocks(k_BGTK)), with_previous(blocks(v_BGTK))
    query = torch.arange(C, device=q.device)[:, None]
    key = torch.arange(-C, C, device=q.device)
    mask = ((key <= query) & (key > query - window)).repeat(len(q), 1, 1, 1)
    mask[0, ..., :C] = False  # nothing comes before the first block
    o = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return o.transpose(0, 1).flatten(1, 2).unflatten(0, (B, -1))[:, :, :T]


def attend(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Torch implementation of `op.attend`."""
    rule = {"causal": causal, "window": window, "segment_ids": segment_ids}
    seen = partial(_seen, T=q_BTHK.shape[1], device=q_BTHK.device, **rule)
    return _blockwise(q_BTHK, k_BTGK, v_BTGV, scale, softcap, seen)


def attend_cached(
    q_BQHK: Tensor,
    cache: PagedCache,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Quantized keys and values are not dequantized: their scales multiply scores and weights."""
    Q, G = q_BQHK.shape[1], cache.k_pages.shape[2]
    wide = torch.promote_types(q_BQHK.dtype, torch.float32)
    q_BGRQK = (q_BQHK.to(wide) * scale).unflatten(2, (G, -1)).permute(0, 2, 3, 1, 4)
    rows = zip(q_BGRQK.flatten(2, 3), _rows(cache, cache.k_pages, wide), strict=True)
    s_BGMS = torch.stack([q_GMK @ k_SGK.permute(1, 2, 0) for q_GMK, k_SGK in rows])
    if cache.k_scale is not None:
        s_BGMS = s_BGMS * in_order(cache, cache.k_scale).mT[:, :, None]
    if softcap is not None:
        s_BGMS = softcap * torch.tanh(s_BGMS / softcap)
    query_BQ1 = (cache.lengths_B[:, None] + torch.arange(-Q, 0, device=q_BQHK.device))[..., None]
    key_S = torch.arange(s_BGMS.shape[-1], device=q_BQHK.device)
    seen_BQS = key_S <= query_BQ1
    if window is not None:
        seen_BQS = seen_BQS & (key_S > query_BQ1 - window)
    s_BGRQS = s_BGMS.unflatten(2, (-1, Q)).masked_fill(~seen_BQS[:, None, None], -torch.inf)
    lse_BGRQ = s_BGRQS.logsumexp(-1)
    p_BGMS = (s_BGRQS - _pivot(lse_BGRQ)[..., None]).exp().flatten(2, 3)
    v_pages, v_scale = cache.v_pages, cache.v_scale
    if v_pages is None:
        v_pages, v_scale = cache.k_pages[..., : cache.v_dim], cache.k_scale
    if v_scale is not None:
        p_BGMS = p_BGMS * in_order(cache, v_scale).mT[:, :, None]
    rows = zip(p_BGMS, _rows(cache, v_pages, wide), strict=True)
    o_BGMV = torch.stack([p_GMS @ v_SGV.transpose(0, 1) for p_GMS, v_SGV in rows])
    o_BHQV = o_BGMV.unflatten(2, (-1, Q)).flatten(1, 2)
    return o_BHQV.transpose(1, 2).to(q_BQHK.dtype), lse_BGRQ.flatten(1, 2)


def _rows(cache: PagedCache, pages: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """x_SGK of one batch row after the other: a batched product would copy them first."""
    for table_N in cache.page_table:
        yield pages.index_select(0, table_N).flatten(0, 1).to(dtype)


def attend_blocks(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    *,
    block: int,
    scale: float,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Torch implementation of `op.attend_blocks`."""
    T, device = q_BTHK.shape[1], q_BTHK.device
    block_T = torch.arange(T, device=device) // block
    J = -(-T // block)
    listed_BGTJ = torch.zeros(*blocks_BGTN.shape[:3], J + 1, dtype=torch.bool, device=device)
    listed_BGTJ.scatter_(-1, (blocks_BGTN % (J + 1)).long(), True)  # -1 goes to the extra column

    def seen(begin: int, end: int) -> tuple[slice, Tensor]:
        rule = {"causal": True, "window": None, "segment_ids": segment_ids}
        keys, mask = _seen(begin, end, T=T, device=device, **rule)
        return keys, mask & listed_BGTJ[:, :, begin:end, block_T[keys]]

    return _blockwise(q_BTHK, k_BTGK, v_BTGV, scale, None, seen)


def _seen(
    begin: int,
    end: int,
    *,
    T: int,
    device: torch.device,
    causal: bool,
    window: int | None,
    segment_ids: Tensor | None,
) -> tuple[slice, Tensor]:
    keys = slice(0 if window is None else max(0, begin - window + 1), end if causal else T)
    query = torch.arange(begin, end, device=device)[:, None]
    key = torch.arange(keys.start, keys.stop, device=device)
    mask = key <= query if causal else torch.ones_like(key <= query)
    if window is not None:
        mask = mask & (key > query - window)
    if segment_ids is not None:
        mask = mask & (segment_ids[:, None, begin:end, None] == segment_ids[:, None, None, keys])
        return keys, mask
    return keys, mask[None, None]


def _blockwise(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    scale: float,
    softcap: float | None,
    seen: Seen,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    q, k, v = (x.to(wide).transpose(1, 2).contiguous() for x in (q_BTHK, k_BTGK, v_BTGV))
    q_BGRTK = q.unflatten(1, (k.shape[1], -1))
    o_BGRTV, lse_BGRT = Blockwise.apply(q_BGRTK, k, v, scale, softcap, seen)
    return o_BGRTV.flatten(1, 2).transpose(1, 2).to(q_BTHK.dtype), lse_BGRT.flatten(1, 2)


class Blockwise(torch.autograd.Function):
    """(o_BGRTV, lse_BGRT), BLOCK queries at a time; the backward recomputes their scores.

    Its gradients are derived at the head of backward.py.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BGRTK: Tensor,
        k_BGTK: Tensor,
        v_BGTV: Tensor,
        scale: float,
        softcap: float | None,
        seen: Seen,
    ) -> tuple[Tensor, Tensor]:
        T = q_BGRTK.shape[3]
        o_BGRTV = q_BGRTK.new_empty(*q_BGRTK.shape[:4], v_BGTV.shape[3])
        lse_BGRT = q_BGRTK.new_empty(q_BGRTK.shape[:4])
        for begin in range(0, T, BLOCK):
            end = min(begin + BLOCK, T)
            keys, mask = seen(begin, end)
            s, _ = _scores(q_BGRTK[..., begin:end, :] * scale, k_BGTK[:, :, keys], mask, softcap)
            largest = _pivot(s.amax(-1))
            p = s.sub_(largest[..., None]).exp_()
            total = p.sum(-1)
            lse_BGRT[..., begin:end] = total.log() + largest
            o = _per_head(p, v_BGTV[:, :, keys])
            o_BGRTV[..., begin:end, :] = o.div_(total.masked_fill(total == 0, 1)[..., None])
        ctx.save_for_backward(q_BGRTK, k_BGTK, v_BGTV, o_BGRTV, lse_BGRT)
        ctx.scale, ctx.softcap, ctx.seen = scale, softcap, seen
        return o_BGRTV, lse_BGRT

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # decorated, ctx has no name
        ctx: Any, do_BGRTV: Tensor, dlse_BGRT: Tensor
    ) -> tuple[Tensor | None, ...]:
        q_BGRTK, k_BGTK, v_BGTV, o_BGRTV, lse_BGRT = ctx.saved_tensors
        T = q_BGRTK.shape[3]
        delta_BGRT = (o_BGRTV * do_BGRTV).sum(-1) - dlse_BGRT
        dq_BGRTK = torch.empty_like(q_BGRTK)
        dk_BGTK, dv_BGTV = torch.zeros_like(k_BGTK), torch.zeros_like(v_BGTV)
        for begin in range(0, T, BLOCK):
            end = min(begin + BLOCK, T)
            keys, mask = ctx.seen(begin, end)
            q, k = q_BGRTK[..., begin:end, :] * ctx.scale, k_BGTK[:, :, keys]
            do, v = do_BGRTV[..., begin:end, :], v_BGTV[:, :, keys]
            s, slope = _scores(q, k, mask, ctx.softcap)
            p = s.sub_(_pivot(lse_BGRT[..., begin:end])[..., None]).exp_()
            ds = _per_head(do, v.mT).sub_(delta_BGRT[..., begin:end, None]).mul_(p)
            if slope is not None:
                ds.mul_(slope)
            dq_BGRTK[..., begin:end, :] = _per_head(ds, k) * ctx.scale
            dk_BGTK[:, :, keys] += ds.flatten(2, 3).mT @ q.flatten(2, 3)
            dv_BGTV[:, :, keys] += p.flatten(2, 3).mT @ do.flatten(2, 3)
        return dq_BGRTK, dk_BGTK, dv_BGTV, None, None, None


def _per_head(x_BGRCK: Tensor, y_BGKS: Tensor) -> Tensor:
    """x @ y: all query heads of a key head in one product."""
    return (x_BGRCK.flatten(2, 3) @ y_BGKS).unflatten(2, x_BGRCK.shape[2:4])


def _scores(
    q_BGRCK: Tensor, k_BGSK: Tensor, mask: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """(scores, derivative of the soft cap); `q` is already scaled."""
    s, slope = _per_head(q_BGRCK, k_BGSK.mT), None
    if softcap is not None:
        tanh = s.div_(softcap).tanh_()
        s, slope = tanh * softcap, 1 - tanh.square()
    return s.add_(torch.where(mask, 0.0, -torch.inf)[:, :, None]), slope


def _pivot(x: Tensor) -> Tensor:
    """The maximum subtracted from a row's scores: zero where it sees no key, to avoid NaN."""
    return x.masked_fill(x == -torch.inf, 0)


def attend_selected(
    q_BTHK: Tensor, k_BCK: Tensor, index_BTN: Tensor, *, v_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """`op.attend_selected` in PyTorch: each query's keys are gathered, some queries at a time."""
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    o_BTHV, lse_BHT = Selected.apply(q_BTHK.to(wide), k_BCK.to(wide), index_BTN, v_dim, scale)
    return o_BTHV.to(q_BTHK.dtype), lse_BHT


class Selected(torch.autograd.Function):
    """(o_BTHV, lse_BHT) over gathered keys; the backward gathers them again."""

    @staticmethod
    def forward(
        ctx: Any, q_BTHK: Tensor, k_BCK: Tensor, index_BTN: Tensor, v_dim: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for t in _query_slices(q_BTHK, index_BTN):
            k_BtNK, s_BtHN = _gathered_scores(q_BTHK[:, t], k_BCK, index_BTN[:, t], scale)
            lse_BtH = s_BtHN.logsumexp(-1)
            p_BtHN = (s_BtHN - _pivot(lse_BtH)[..., None]).exp()
            parts.append((p_BtHN @ k_BtNK[..., :v_dim], lse_BtH))
        o_BTHV = torch.cat([o for o, _ in parts], 1)
        lse_BHT = torch.cat([lse for _, lse in parts], 1).transpose(1, 2)
        ctx.save_for_backward(q_BTHK, k_BCK, index_BTN, o_BTHV, lse_BHT)
        ctx.scale = scale
        return o_BTHV, lse_BHT

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # decorated, ctx has no name
        ctx: Any, do_BTHV: Tensor, dlse_BHT: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, k, index, o, lse = ctx.saved_tensors
        gradients = selected_gradients(q, k, index, o, lse, do_BTHV, dlse_BHT, ctx.scale)
        return *gradients, None, None, None


def selected_gradients(
    q_BTHK: Tensor,
    k_BCK: Tensor,
    index_BTN: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    do_BTHV: Tensor,
    dlse_BHT: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(dq_BTHK, dk_BCK) of `attend_selected`, in the inputs' dtypes, fp32 or wider inside.

    With p the attention weights: dp = do v^T, ds = p (dp - rowsum(o do) + dlse), dq = ds k,
    dk = ds^T q, and p^T do added to the columns of dk that are the value.
    """
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    V = o_BTHV.shape[-1]
    k_wide = k_BCK.to(wide)
    dk_BCK = torch.zeros_like(k_wide)
    dq_parts = []
    for t in _query_slices(q_BTHK, index_BTN):
        q, do = q_BTHK[:, t].to(wide), do_BTHV[:, t].to(wide)
        k_BtNK, s_BtHN = _gathered_scores(q, k_wide, index_BTN[:, t], scale)
        p_BtHN = (s_BtHN - _pivot(lse_BHT[:, :, t].transpose(1, 2))[..., None]).exp()
        delta_BtH = (o_BTHV[:, t].to(wide) * do).sum(-1) - dlse_BHT[:, :, t].transpose(1, 2)
        ds_BtHN = p_BtHN * (do @ k_BtNK[..., :V].mT - delta_BtH[..., None]) * scale
        dq_parts.append(ds_BtHN @ k_BtNK)
        dk_BtNK = ds_BtHN.mT @ q
        dk_BtNK[..., :V] += p_BtHN.mT @ do
        place_BL1 = index_BTN[:, t].clamp(min=0).flatten(1)[..., None].long()
        dk_BCK.scatter_add_(1, place_BL1.expand(-1, -1, k_BCK.shape[-1]), dk_BtNK.flatten(1, 2))
    return torch.cat(dq_parts, 1).to(q_BTHK.dtype), dk_BCK.to(k_BCK.dtype)


def _query_slices(q_BTHK: Tensor, index_BTN: Tensor) -> Iterator[slice]:
    """Slices of queries whose gathered keys fit into GATHERED elements."""
    B, T, H, K = q_BTHK.shape
    at_once = max(1, GATHERED // (B * index_BTN.shape[-1] * max(H, K)))
    return (slice(start, min(T, start + at_once)) for start in range(0, T, at_once))


def _gathered_scores(
    q_BtHK: Tensor, k_BCK: Tensor, index_BtN: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(k_BtNK, s_BtHN): the listed keys, zero where none is named, and the masked scores."""
    row_B11 = torch.arange(len(k_BCK), device=k_BCK.device)[:, None, None]
    k_BtNK = k_BCK[row_B11, index_BtN.clamp(min=0).long()]
    s_BtHN = (q_BtHK * scale) @ k_BtNK.mT
    return k_BtNK, s_BtHN.masked_fill((index_BtN < 0)[:, :, None], -torch.inf)
