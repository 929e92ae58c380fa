"""Reference of the recurrences, token by token: the specification that all implementations match.

Arithmetic and states are float32, or float64 where the values are float64; outputs are rounded
once, to the dtype of the values. Autograd of these lines defines every gradient. Arguments, shapes
and results are those of op.py.

`segment_ids` numbers the packed sequence of each token, nondecreasing along a row: the first token
of a segment starts from a zero state. The initial state belongs to the first segment of its row,
the returned one to the last.
"""

# B batch, T tokens, G key heads, H value heads (key head g serves the H / G value heads from
# g H / G on), K key width, V value width, N channels, S states per channel

import torch
from torch import Tensor


def linear_recurrence(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    *,
    scale: float = 1.0,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, state_BHKV) with S_t = e^{g_t} S_{t-1} + k_t v'_t^T and o_t = scale S_t^T q_t.

    v'_t is v_t, or with `beta` beta_t (v_t - (e^{g_t} S_{t-1})^T k_t): the delta rule. g_t is
    `decay`, a natural logarithm, at most 0: None, per head [H], per token and head [B, T, H], or
    per token, head and row of the state [B, T, H, K]. Covers linear attention, retention (arXiv
    2307.08621), Mamba-2 (2405.21060), GLA (2312.06635), DeltaNet (2406.06484), Gated DeltaNet
    (2412.06464) and KDA (2510.26692).
    """
    B, T, H, V = v_BTHV.shape
    wide = _wide(v_BTHV)
    q_BTHK, k_BTHK = (x.to(wide).repeat_interleave(H // x.shape[2], 2) for x in (q_BTGK, k_BTGK))
    decay_BTHK = _by_channel(decay, v_BTHV)
    state, reads = _first(state_BHKV, (B, H, q_BTGK.shape[3], V), v_BTHV), []
    for t in range(T):
        state = _zero_at_segment_start(state, segment_ids, t)
        beta_BH = None if beta is None else beta[:, t].to(wide)
        o_BHV, state = _delta_step(
            q_BTHK[:, t], k_BTHK[:, t], v_BTHV[:, t].to(wide), decay_BTHK[:, t], beta_BH, state
        )
        reads.append(scale * o_BHV)
    return torch.stack(reads, 1).to(v_BTHV.dtype), state


def rwkv7_recurrence(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, state_BHKV) with S_t = e^{w_t} S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T and
    o_t = S_t^T r_t.

    w is the natural logarithm of the decay, at most 0 (RWKV-7, arXiv 2503.14456, whose state is
    this one transposed).
    """
    B, T, H, V = v_BTHV.shape
    inputs = [x.to(_wide(v_BTHV)) for x in (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)]
    state, reads = _first(state_BHKV, (B, H, r_BTHK.shape[3], V), v_BTHV), []
    for t in range(T):
        state = _zero_at_segment_start(state, segment_ids, t)
        r, w, k, v, a, b = (x[:, t] for x in inputs)
        o_BHV, state = _rwkv7_step(r, w, k, v, a, b, state)
        reads.append(o_BHV)
    return torch.stack(reads, 1).to(v_BTHV.dtype), state


def linear_recurrence_step(
    q_BGK: Tensor,
    k_BGK: Tensor,
    v_BHV: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    state_BHKV: Tensor,
    *,
    scale: float = 1.0,
) -> Tensor:
    """o_BHV: `linear_recurrence` of one token, without gradients; updates the state in place.

    The state is float32, float64 or bfloat16, rounded when it is stored. `decay` is None, [H],
    [B, H] or [B, H, K].
    """
    wide, H = _wide(v_BHV), v_BHV.shape[1]
    q_BHK, k_BHK = (x.to(wide).repeat_interleave(H // x.shape[1], 1) for x in (q_BGK, k_BGK))
    decay_BHK = _by_channel(decay, v_BHV)
    beta_BH = None if beta is None else beta.to(wide)
    o_BHV, state = _delta_step(
        q_BHK, k_BHK, v_BHV.to(wide), decay_BHK, beta_BH, state_BHKV.to(wide)
    )
    state_BHKV.copy_(state)
    return (scale * o_BHV).to(v_BHV.dtype)


def rwkv7_recurrence_step(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
) -> Tensor:
    """o_BHV: `rwkv7_recurrence` of one token, without gradients; updates the state in place."""
    inputs = (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK, state_BHKV)
    r, w, k, v, a, b, state = (x.to(_wide(v_BHV)) for x in inputs)
    o_BHV, state = _rwkv7_step(r, w, k, v, a, b, state)
    state_BHKV.copy_(state)
    return o_BHV.to(v_BHV.dtype)


def channel_scan(
    x_BTN: Tensor,
    decay_BTN: Tensor,
    state_BN: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(h_BTN, state_BN) with h_t = e^{g_t} h_{t-1} + x_t for each channel, g_t = decay_t <= 0."""
    B, T, N = x_BTN.shape
    wide = _wide(x_BTN)
    state, states = _first(state_BN, (B, N), x_BTN), []
    for t in range(T):
        state = _zero_at_segment_start(state, segment_ids, t)
        state = decay_BTN[:, t].to(wide).exp() * state + x_BTN[:, t].to(wide)
        states.append(state)
    return torch.stack(states, 1).to(x_BTN.dtype), state


def selective_scan(
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    state_BNS: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y_BTN, state_BNS) with h_t = e^{dt_t A} h_{t-1} + dt_t x_t B_t^T and y_t = h_t C_t + D x_t.

    A is at most 0, dt at least 0 (Mamba-1, arXiv 2312.00752, algorithm 2, with the Euler step for B
    that its code takes).
    """
    wide = _wide(x_BTN)
    x, dt, A, B, C, D = (y.to(wide) for y in (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N))
    state, reads = _first(state_BNS, (len(x), *A.shape), x_BTN), []
    for t in range(x.shape[1]):
        state = _zero_at_segment_start(state, segment_ids, t)
        written_BNS = (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        state = (dt[:, t, :, None] * A).exp() * state + written_BNS
        reads.append(torch.einsum("bns,bs->bn", state, C[:, t]) + D * x[:, t])
    return torch.stack(reads, 1).to(x_BTN.dtype), state


def _delta_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    decay_BHK: Tensor,
    beta_BH: Tensor | None,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    state_BHKV = decay_BHK.exp()[..., None] * state_BHKV
    if beta_BH is not None:
        known_BHV = torch.einsum("bhk,bhkv->bhv", k_BHK, state_BHKV)
        v_BHV = beta_BH[..., None] * (v_BHV - known_BHV)
    state_BHKV = state_BHKV + k_BHK[..., None] * v_BHV[..., None, :]
    return torch.einsum("bhk,bhkv->bhv", q_BHK, state_BHKV), state_BHKV


def _rwkv7_step(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    known_BHV = torch.einsum("bhk,bhkv->bhv", a_BHK, state_BHKV)
    written_BHKV = (
        b_BHK[..., None] * known_BHV[..., None, :] + k_BHK[..., None] * v_BHV[..., None, :]
    )
    state_BHKV = w_BHK.exp()[..., None] * state_BHKV + written_BHKV
    return torch.einsum("bhk,bhkv->bhv", r_BHK, state_BHKV), state_BHKV


def _by_channel(decay: Tensor | None, v: Tensor) -> Tensor:
    """The decay as [..., H, K], or [..., H, 1] where it is one per head."""
    if decay is None:
        return v.new_zeros(1, dtype=_wide(v)).expand(*v.shape[:-1], 1)
    decay = decay.to(_wide(v))
    return decay if decay.dim() == v.dim() else decay.expand(v.shape[:-1])[..., None]


def _first(state: Tensor | None, shape: tuple[int, ...], values: Tensor) -> Tensor:
    wide = _wide(values)
    return values.new_zeros(shape, dtype=wide) if state is None else state.to(wide)


def _zero_at_segment_start(state: Tensor, segment_ids: Tensor | None, t: int) -> Tensor:
    if segment_ids is None or t == 0:
        return state
    begins_B = segment_ids[:, t] != segment_ids[:, t - 1]
    return state.masked_fill(begins_B.view(-1, *[1] * (state.dim() - 1)), 0)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
