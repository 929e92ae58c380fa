"""The linear recurrence of Mamba-2 and gated DeltaNet: chunk by chunk, or token by token.

For each value head, with a state S of K x V and natural-log decay g <= 0,

    S_t = e^{g_t} S_{t-1} + k_t v'_t^T          o_t = S_t^T q_t
    v'_t = v_t                                       without beta: Mamba-2
    v'_t = beta_t (v_t - (e^{g_t} S_{t-1})^T k_t)    with beta: the delta rule

Inside a chunk, with G the running sum of g and D_ij = e^{G_i - G_j} for j <= i, else 0,

    V' = (I + strictly lower(beta K K^T . D))^{-1} beta (V - e^G K S)     V' = V without beta
    O  = e^G Q S + (Q K^T . D) V'               S <- e^{G_C} S + K^T e^{G_C - G} V'

(arXiv 2405.21060, section 6; arXiv 2412.06464, section 3.3.)
"""

# B batch, T tokens, C tokens of a chunk, G key heads, H value heads, K key width, V value width,
# R = H / G value heads of a key head: key head g serves the value heads g R ... g R + R - 1

from itertools import repeat

import torch
from torch import Tensor

CHUNK = 64
# e^-64 forgets all that fp32 can tell; a larger step would cost the running sum its precision
STRONGEST_DECAY = -64.0


def chunked(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay_BTH: Tensor,
    beta_BTH: Tensor | None,
    state_BHKV: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, state_BHKV) of a whole text, in the state's dtype: fp32 or wider."""
    split = [x.to(state_BHKV.dtype).split(chunk, 1) for x in (q_BTGK, k_BTGK, v_BTHV, decay_BTH)]
    betas = repeat(None) if beta_BTH is None else beta_BTH.to(state_BHKV.dtype).split(chunk, 1)
    heads = (q_BTGK.shape[2], v_BTHV.shape[2] // q_BTGK.shape[2])
    state_BGRKV, reads = state_BHKV.unflatten(1, heads), []
    for q, k, v, decay, beta in zip(*split, betas, strict=False):
        o_BCHV, state_BGRKV = _chunk(q, k, v, decay, beta, state_BGRKV)
        reads.append(o_BCHV)
    return torch.cat(reads, 1), state_BGRKV.flatten(1, 2)


def _chunk(
    q_BCGK: Tensor,
    k_BCGK: Tensor,
    v_BCHV: Tensor,
    decay_BCH: Tensor,
    beta_BCH: Tensor | None,
    state_BGRKV: Tensor,
) -> tuple[Tensor, Tensor]:
    heads = state_BGRKV.shape[1:3]
    q_BGCK, k_BGCK = q_BCGK.transpose(1, 2), k_BCGK.transpose(1, 2)
    v_BGRCV = v_BCHV.unflatten(2, heads).permute(0, 2, 3, 1, 4)
    decay_BGRC = decay_BCH.clamp(min=STRONGEST_DECAY).unflatten(2, heads).permute(0, 2, 3, 1)
    sum_BGRC = decay_BGRC.cumsum(-1)
    # exponents only as differences, masked before exp: e^{-G_j} alone overflows
    gap_BGRCC = sum_BGRC[..., :, None] - sum_BGRC[..., None, :]
    future_CC = torch.ones(gap_BGRCC.shape[-2:], dtype=torch.bool, device=gap_BGRCC.device).triu(1)
    D_BGRCC = gap_BGRCC.masked_fill_(future_CC, -torch.inf).exp()
    from_start_BGRC1, to_end_BGRC1 = sum_BGRC.exp()[..., None], D_BGRCC[..., -1, :, None]

    if beta_BCH is not None:
        beta_BGRC1 = beta_BCH.unflatten(2, heads).permute(0, 2, 3, 1)[..., None]
        known_BGRCV = torch.einsum("bgck,bgrkv->bgrcv", k_BGCK, state_BGRKV) * from_start_BGRC1
        overlap_BGRCC = beta_BGRC1 * (k_BGCK @ k_BGCK.mT)[:, :, None] * D_BGRCC
        v_BGRCV = torch.linalg.solve_triangular(
            overlap_BGRCC, beta_BGRC1 * (v_BGRCV - known_BGRCV), upper=False, unitriangular=True
        )
    inside_BGRCV = ((q_BGCK @ k_BGCK.mT)[:, :, None] * D_BGRCC) @ v_BGRCV
    before_BGRCV = torch.einsum("bgck,bgrkv->bgrcv", q_BGCK, state_BGRKV) * from_start_BGRC1
    written_BGRKV = torch.einsum("bgck,bgrcv->bgrkv", k_BGCK, v_BGRCV * to_end_BGRC1)
    state_BGRKV = from_start_BGRC1[..., -1:, :] * state_BGRKV + written_BGRKV
    return (inside_BGRCV + before_BGRCV).permute(0, 3, 1, 2, 4).flatten(2, 3), state_BGRKV


def step(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay_BTH: Tensor,
    beta_BTH: Tensor | None,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it stands, for T = 1; updates the state in place and returns it."""
    wide, shared_by = state_BHKV.dtype, v_BTHV.shape[2] // q_BTGK.shape[2]
    q_BHK, k_BHK = (x[:, 0].to(wide).repeat_interleave(shared_by, 1) for x in (q_BTGK, k_BTGK))
    v_BHV = v_BTHV[:, 0].to(wide)
    state_BHKV *= decay_BTH[:, 0].to(wide).clamp(min=STRONGEST_DECAY).exp()[..., None, None]
    if beta_BTH is not None:
        known_BHV = torch.einsum("bhk,bhkv->bhv", k_BHK, state_BHKV)
        v_BHV = beta_BTH[:, 0].to(wide)[..., None] * (v_BHV - known_BHV)
    state_BHKV += k_BHK[..., :, None] * v_BHV[..., None, :]
    return torch.einsum("bhk,bhkv->bhv", q_BHK, state_BHKV)[:, None], state_BHKV
