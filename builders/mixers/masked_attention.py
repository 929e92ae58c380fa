"""Attention in plain torch where no kernel applies: arbitrary masks, dilated windows, merging."""

# B batch, T tokens, C keys, H query heads, G key/value heads, R = H / G, K key width, V value width

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.attention import op as attention
from ..body import Pass

MAX_LOGITS = 2**24  # held at once; more queries are processed in several tiles


def masked_attention(
    q_BTHK: Tensor,
    k_BCGK: Tensor,
    v_BCGV: Tensor,
    mask_of: Callable[[slice], Tensor],
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT) of softmax attention under any mask, computed in at least fp32.

    `mask_of(queries)` returns the mask of a slice of T, [B, 1 or H, t, C], True where a key is
    visible. A query without visible keys has an output of zero and a log-sum-exp of -inf.
    """
    B, T, H, _ = q_BTHK.shape
    C = k_BCGK.shape[1]
    rows = max(1, MAX_LOGITS // max(1, B * H * C))
    tiles = [
        _attention_tile(q_BTHK[:, t], k_BCGK, v_BCGV, mask_of(t), scale, softcap)
        for start in range(0, T, rows)
        for t in [slice(start, min(T, start + rows))]
    ]
    return torch.cat([o for o, _ in tiles], 1), torch.cat([lse for _, lse in tiles], 2)


def _attention_tile(
    q_BTHK: Tensor,
    k_BCGK: Tensor,
    v_BCGV: Tensor,
    mask_BHTC: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    fp32 = torch.promote_types(q_BTHK.dtype, torch.float32)
    G = k_BCGK.shape[2]
    q_BGRTK = q_BTHK.transpose(1, 2).unflatten(1, (G, -1)).to(fp32)
    k_BG1KC = k_BCGK.permute(0, 2, 3, 1)[:, :, None].to(fp32)
    logits_BHTC = (q_BGRTK @ k_BG1KC).flatten(1, 2) * scale
    if softcap is not None:
        logits_BHTC = softcap * torch.tanh(logits_BHTC / softcap)
    logits_BHTC = logits_BHTC.masked_fill(~mask_BHTC, -torch.inf)
    lse_BHT = logits_BHTC.logsumexp(-1)
    # a row of -inf would give NaN: with a pivot of zero its weights are zero
    pivot_BHT = lse_BHT.masked_fill(lse_BHT == -torch.inf, 0.0)
    weights_BHTC = (logits_BHTC - pivot_BHT[..., None]).exp()
    v_BG1CV = v_BCGV.transpose(1, 2)[:, :, None].to(fp32)
    o_BHTV = (weights_BHTC.unflatten(1, (G, -1)) @ v_BG1CV).flatten(1, 2)
    return o_BHTV.transpose(1, 2).to(q_BTHK.dtype), lse_BHT


def dilated_attention(
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
    """(o_BTHV, lse_BHT) of sliding-window attention to every `dilation`-th key.

    A text is reshaped to `dilation` interleaved texts with a plain window each.
    """
    B, T = q_BTHK.shape[:2]

    def deinterleaved(x: Tensor) -> Tensor:
        padding = (0, 0) * (x.ndim - 2) + (0, -T % dilation)
        return F.pad(x, padding).unflatten(1, (-1, dilation)).transpose(1, 2).flatten(0, 1)

    segment_ids = None
    if run.segment_ids_BT is not None:  # padding belongs to the last document
        last_B1 = run.segment_ids_BT[:, -1:]
        segment_ids = deinterleaved(run.segment_ids_BT - last_B1) + last_B1.repeat_interleave(
            dilation, 0
        )
    o_NSHV, lse_NHS = attention.attend(
        *(deinterleaved(x) for x in (q_BTHK, k_BTGK, v_BTGV)),
        window=window,
        scale=scale,
        softcap=softcap,
        segment_ids=segment_ids,
    )
    o_BTHV = o_NSHV.unflatten(0, (B, dilation)).transpose(1, 2).flatten(1, 2)[:, :T]
    lse_BHT = lse_NHS.unflatten(0, (B, dilation)).permute(0, 2, 3, 1).flatten(2)[..., :T]
    return o_BTHV, lse_BHT


def merge_attentions(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT) over the union of disjoint key sets, from (o, lse) of each.

    o = sum of o_n exp(lse_n - lse), lse = logsumexp of all lse_n.
    """
    lse_NBHT = torch.stack([lse for _, lse in parts])
    lse_BHT = lse_NBHT.logsumexp(0)
    pivot_BHT = lse_BHT.masked_fill(lse_BHT == -torch.inf, 0.0)
    weight_NBTH1 = (lse_NBHT - pivot_BHT).exp().transpose(2, 3)[..., None]
    o_NBTHV = torch.stack([o for o, _ in parts])
    return (o_NBTHV * weight_NBTH1.to(o_NBTHV.dtype)).sum(0), lse_BHT


def causal_mask(
    query_BT: Tensor,
    key_BC: Tensor,
    *,
    window: int | None = None,
    dilation: int = 1,
    global_tokens: int = 0,
    chunk: int | None = None,
) -> Tensor:
    """mask_BTC by positions: keys that are not later, inside the window and the same chunk.

    Keys of position -1 are invisible. A window holds every `dilation`-th key; the first
    `global_tokens` of a text are always visible.
    """
    query_BT1, key_B1C = query_BT[..., None], key_BC[:, None]
    mask = (key_B1C >= 0) & (key_B1C <= query_BT1)
    if window is not None:
        back = query_BT1 - key_B1C
        near = (back < window * dilation) & (back % dilation == 0)
        mask &= near | (key_B1C < global_tokens)
    if chunk is not None:
        mask &= key_B1C // chunk == query_BT1 // chunk
    return mask


def within_segment(run: Pass, mask_BTT: Tensor) -> Tensor:
    """A mask among the tokens of one pass, restricted to keys of the query's document."""
    if run.segment_ids_BT is None:
        return mask_BTT
    return mask_BTT & (run.segment_ids_BT[:, :, None] == run.segment_ids_BT[:, None])
