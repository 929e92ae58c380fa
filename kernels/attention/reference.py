"""Reference of the operators in plain torch: the specification that all implementations match.

Arithmetic runs in float32, or in float64 where the query is float64. An output is rounded once, to
the query's dtype; lse, the natural logarithm of the sum of exponentials, is not. Autograd of these
lines defines every gradient. A query that sees no key has o = 0 and lse = -inf.
"""

# B batch, T query tokens, S key tokens, H query heads, G key/value heads,
# K key width, V value width, N listed blocks per query, Q new tokens of a cached sequence

import torch
from torch import Tensor

from .cache import PagedCache, read


def attend(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT): o = softmax(s) v with s = scale * q k^T over the keys that a query sees.

    Causal: itself and the ones before; `window`: of those the last `window`; `segment_ids` [B, T]:
    those of its own segment. `softcap` c: s = c * tanh(scale / c * q k^T).
    """
    token_T = torch.arange(q_BTHK.shape[1], device=q_BTHK.device)
    seen_BHTT = _in_order(token_T[:, None], token_T, causal, window)[None, None]
    if segment_ids is not None:
        seen_BHTT = seen_BHTT & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    return _softmax(q_BTHK, k_BTGK, v_BTGV, seen_BHTT, scale, softcap)


def attend_cached(
    q_BQHK: Tensor,
    cache: PagedCache,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BQHV, lse_BHQ): the last Q tokens of a row attend causally to all tokens in its cache."""
    k_BSGK, v_BSGV = read(cache)
    Q, S = q_BQHK.shape[1], k_BSGK.shape[1]
    query_BHQ1 = (cache.lengths_B[:, None] + torch.arange(-Q, 0, device=q_BQHK.device))[
        :, None, :, None
    ]
    seen_BHQS = _in_order(query_BHQ1, torch.arange(S, device=q_BQHK.device), True, window)
    return _softmax(q_BQHK, k_BSGK, v_BSGV, seen_BHQS, scale, softcap)


def attend_blocks(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    *,
    block: int,
    scale: float | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT): `attend`, where a query sees the keys of its listed blocks alone.

    Block i holds the tokens i * block .. (i + 1) * block - 1; -1 lists none.
    """
    T, group = q_BTHK.shape[1], q_BTHK.shape[2] // k_BTGK.shape[2]
    token_T = torch.arange(T, device=q_BTHK.device)
    listed_BGTT = (blocks_BGTN[..., None] == token_T // block).any(-2)
    seen_BHTT = listed_BGTT.repeat_interleave(group, 1) & (token_T <= token_T[:, None])
    if segment_ids is not None:
        seen_BHTT = seen_BHTT & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    return _softmax(q_BTHK, k_BTGK, v_BTGV, seen_BHTT, scale, None)


def _in_order(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    seen = key <= query
    if not causal:
        return torch.ones_like(seen)
    return seen if window is None else seen & (key > query - window)


def _softmax(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGV: Tensor,
    seen_BHTS: Tensor,
    scale: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    H, K = q_BTHK.shape[2:]
    group = H // k_BSGK.shape[2]
    q, k, v = (x.to(_wide(q_BTHK)) for x in (q_BTHK, k_BSGK, v_BSGV))
    k_BSHK, v_BSHV = (x.repeat_interleave(group, 2) for x in (k, v))
    s = torch.einsum("bthk,bshk->bhts", q, k_BSHK) * (K**-0.5 if scale is None else scale)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    s = s.masked_fill(~seen_BHTS, -torch.inf)
    lse_BHT = s.logsumexp(-1)
    p = (s - lse_BHT.masked_fill(lse_BHT == -torch.inf, 0.0)[..., None]).exp()
    return torch.einsum("bhts,bshv->bthv", p, v_BSHV).to(q_BTHK.dtype), lse_BHT


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def attend_selected(
    q_BTHK: Tensor,
    k_BCK: Tensor,
    index_BTN: Tensor,
    *,
    v_dim: int,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT): softmax attention of each query over the keys that its list names.

    Multi-query attention in which the leading `v_dim` columns of a key are its value (absorbed
    MLA, DeepSeek-V3.2-Exp report, section 2.1). `index_BTN` int32 names a key of C at most once;
    entries below 0 name none.
    """
    C = k_BCK.shape[1]
    listed_BTC = torch.zeros(*index_BTN.shape[:2], C + 1, dtype=torch.bool, device=q_BTHK.device)
    listed_BTC.scatter_(-1, index_BTN.masked_fill(index_BTN < 0, C).long(), True)
    k_BC1K = k_BCK[:, :, None]
    return _softmax(q_BTHK, k_BC1K, k_BC1K[..., :v_dim], listed_BTC[:, None, :, :C], scale, None)
