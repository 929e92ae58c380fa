"""Torch implementation of the recurrences over chunks of tokens: backend="torch".

Inside a chunk of C tokens, with G_i = g_1 + ... + g_i and S the state before it,

    V' = (I + strictly lower(beta P))^{-1} beta (V - K^ S)        V' = V without beta
    O  = Q^ S + lower(A) V'                 S <- e^{G_C} S + K_^T V'
    A_ij = sum_k q_ik k_jk e^{G_ik - G_jk}  P_ij the same of k_i and k_j
    Q^ = Q e^G     K^ = K e^G               K_ = K e^{G_C - G}

(arXiv 2405.21060, section 6; 2412.06464, section 3.3). With a decay per head, A is a product of
matrices with a factor per element; with one per channel `_products` forms it. RWKV-7 writes V and a
correction P = (I - strictly lower(A_ab))^{-1} (a^ S + strictly lower(A_ak) V).
"""

# B batch, T tokens, C tokens per chunk, G key heads, H value heads, K key width, V value width,
# R = H / G value heads of a key head: key head g serves the value heads g R ... g R + R - 1,
# X kinds of rows, Y kinds of columns, N channels, S states per channel

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .configs import MIN_LOG_DECAY_PER_CHANNEL, MIN_LOG_DECAY_PER_HEAD

BLOCK = 8
LARGEST_CHUNK = 32  # beyond, products of C x C cost more than fewer iterations save


@dataclass(frozen=True, kw_only=True)
class SegmentMasks:
    """Boolean masks of the tokens of a chunk, for rows that hold several segments."""

    different_segment_B1CC: Tensor  # pairs of tokens in different segments
    after_first_segment_B1C1: Tensor  # tokens that do not see the state before the chunk
    before_last_segment_B1C1: Tensor  # tokens that do not write to the state after it


def linear_recurrence(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    *,
    scale: float = 1.0,
    chunk: int = 64,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Torch implementation of `op.linear_recurrence`."""
    wide, chunk = _wide(v_BTHV), min(chunk, LARGEST_CHUNK)
    (B, T, H, V), (G, K) = v_BTHV.shape, q_BTGK.shape[2:]
    if decay is None:
        decay = v_BTHV.new_zeros(H, dtype=wide)
    if decay.dim() == 1:
        decay = decay.expand(1, T, H)
    tokens = [x.to(wide) for x in (scale * q_BTGK, k_BTGK, v_BTHV, decay)]
    if beta is not None:
        tokens.append(beta.to(wide))
    one_chunk = _chunk_by_head
    if decay.dim() == 4:
        one_chunk = _chunk_by_channel
        tokens[:2] = (x.repeat_interleave(H // G, 2) if G < H else x for x in tokens[:2])
        tokens, segment_ids, chunk = _even(tokens, segment_ids, chunk)

    state, reads = _first(state_BHKV, (B, H, K, V), v_BTHV), []
    parts = zip(*(x.split(chunk, 1) for x in tokens), strict=True)
    for part, masks in zip(parts, _segment_masks(segment_ids, T, chunk), strict=True):
        o_BCHV, state = one_chunk(*part, state=state, masks=masks)
        reads.append(o_BCHV)
    return torch.cat(reads, 1)[:, :T].to(v_BTHV.dtype), state


def _chunk_by_head(
    q_BCGK: Tensor,
    k_BCGK: Tensor,
    v_BCHV: Tensor,
    decay_BCH: Tensor,
    beta_BCH: Tensor | None = None,
    *,
    state: Tensor,
    masks: SegmentMasks | None,
) -> tuple[Tensor, Tensor]:
    heads = (q_BCGK.shape[2], v_BCHV.shape[2] // q_BCGK.shape[2])
    state_BGRKV = state.unflatten(1, heads)
    q_BGCK, k_BGCK = q_BCGK.transpose(1, 2), k_BCGK.transpose(1, 2)
    v_BGRCV = v_BCHV.unflatten(2, heads).permute(0, 2, 3, 1, 4)
    decay_BGRC = decay_BCH.clamp(min=MIN_LOG_DECAY_PER_HEAD).unflatten(2, heads).permute(0, 2, 3, 1)
    sum_BGRC = decay_BGRC.cumsum(-1)
    from_start_BGRC1 = sum_BGRC.exp()[..., None]
    # exponents only as differences, masked before exp: e^{-G_j} alone overflows
    gap_BGRCC = sum_BGRC[..., :, None] - sum_BGRC[..., None, :]
    hidden = torch.ones(gap_BGRCC.shape[-2:], dtype=torch.bool, device=gap_BGRCC.device).triu(1)
    if masks is not None:
        hidden = hidden | masks.different_segment_B1CC[:, None]
        from_start_BGRC1 = from_start_BGRC1.masked_fill(masks.after_first_segment_B1C1[:, None], 0)
    D_BGRCC = gap_BGRCC.masked_fill(hidden, -torch.inf).exp()
    to_end_BGRC1 = D_BGRCC[..., -1, :, None]

    if beta_BCH is not None:
        beta_BGRC1 = beta_BCH.unflatten(2, heads).permute(0, 2, 3, 1)[..., None]
        known_BGRCV = torch.einsum("bgck,bgrkv->bgrcv", k_BGCK, state_BGRKV) * from_start_BGRC1
        overlap_BGRCC = beta_BGRC1 * (k_BGCK @ k_BGCK.mT)[:, :, None] * D_BGRCC
        v_BGRCV = _solve(overlap_BGRCC, beta_BGRC1 * (v_BGRCV - known_BGRCV))
    inside_BGRCV = ((q_BGCK @ k_BGCK.mT)[:, :, None] * D_BGRCC) @ v_BGRCV
    before_BGRCV = torch.einsum("bgck,bgrkv->bgrcv", q_BGCK, state_BGRKV) * from_start_BGRC1
    written_BGRKV = torch.einsum("bgck,bgrcv->bgrkv", k_BGCK, v_BGRCV * to_end_BGRC1)
    state_BGRKV = from_start_BGRC1[..., -1:, :] * state_BGRKV + written_BGRKV
    o_BGRCV = inside_BGRCV + before_BGRCV
    return o_BGRCV.permute(0, 3, 1, 2, 4).flatten(2, 3), state_BGRKV.flatten(1, 2)


def _chunk_by_channel(
    q_BCHK: Tensor,
    k_BCHK: Tensor,
    v_BCHV: Tensor,
    decay_BCHK: Tensor,
    beta_BCH: Tensor | None = None,
    *,
    state: Tensor,
    masks: SegmentMasks | None,
) -> tuple[Tensor, Tensor]:
    q, k, v, decay = (x.transpose(1, 2) for x in (q_BCHK, k_BCHK, v_BCHV, decay_BCHK))
    sum_BHCK = decay.clamp(min=MIN_LOG_DECAY_PER_CHANNEL).cumsum(-2)
    from_start, to_end = _from_start(sum_BHCK, masks), _to_end(sum_BHCK, masks)
    rows = [q] if beta_BCH is None else [q, k]
    A, *P = _within_segments(_products(torch.stack(rows), k[None], sum_BHCK)[:, 0], masks)
    if beta_BCH is not None:
        beta_BHC1 = beta_BCH.mT[..., None]
        v = _solve(beta_BHC1 * P[0], beta_BHC1 * (v - (k * from_start) @ state))
    o_BHCV = (q * from_start) @ state + A @ v
    state = from_start[..., -1, :, None] * state + (k * to_end).mT @ v
    return o_BHCV.transpose(1, 2), state


def rwkv7_recurrence(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    *,
    chunk: int = 64,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Torch implementation of `op.rwkv7_recurrence`."""
    wide, chunk = _wide(v_BTHV), min(chunk, LARGEST_CHUNK)
    (B, T, H, V), K = v_BTHV.shape, r_BTHK.shape[3]
    tokens = [x.to(wide) for x in (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)]
    tokens, segment_ids, chunk = _even(tokens, segment_ids, chunk)
    state, reads = _first(state_BHKV, (B, H, K, V), v_BTHV), []
    parts = zip(*(x.transpose(1, 2).split(chunk, 2) for x in tokens), strict=True)
    for (r, w, k, v, a, b), masks in zip(parts, _segment_masks(segment_ids, T, chunk), strict=True):
        sum_BHCK = w.clamp(min=MIN_LOG_DECAY_PER_CHANNEL).cumsum(-2)
        from_start, to_end = _from_start(sum_BHCK, masks), _to_end(sum_BHCK, masks)
        # a_t reads what token t - 1 left: as a row of that token it decays as r does
        earlier_a = F.pad(a[..., 1:, :], (0, 0, 0, 1))
        of_r, of_a = _products(torch.stack([r, earlier_a]), torch.stack([k, b]), sum_BHCK)
        A_rk, A_rb = _within_segments(of_r, masks)
        A_ak, A_ab = _within_segments(_next_row(of_a), masks)
        known = (a * _from_start(_next_row(sum_BHCK), masks)) @ state
        p = _solve(-A_ab, known + A_ak @ v)
        reads.append(((r * from_start) @ state + A_rk @ v + A_rb @ p).transpose(1, 2))
        written = (k * to_end).mT @ v + (b * to_end).mT @ p
        state = from_start[..., -1, :, None] * state + written
    return torch.cat(reads, 1)[:, :T].to(v_BTHV.dtype), state


def channel_scan(
    x_BTN: Tensor,
    decay_BTN: Tensor,
    state_BN: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """About sqrt(T) blocks of sqrt(T) tokens, all from zero; then their initial states."""
    wide, (B, T, N) = _wide(x_BTN), x_BTN.shape
    size = math.isqrt(T - 1) + 1
    keep = decay_BTN.to(wide).exp()
    if segment_ids is not None:
        keep = keep.masked_fill(_begins(segment_ids)[..., None], 0)
    blocks = (0, 0, 0, -T % size)
    written = F.pad(x_BTN.to(wide), blocks).unflatten(1, (-1, size)).unbind(2)
    kept = F.pad(keep, blocks, value=1.0).unflatten(1, (-1, size)).unbind(2)
    states, kept_since_start = [written[0]], [kept[0]]
    for u, a in zip(written[1:], kept[1:], strict=True):
        states.append(torch.addcmul(u, a, states[-1]))
        kept_since_start.append(a * kept_since_start[-1])
    state, received = _first(state_BN, (B, N), x_BTN), []
    for last, a in zip(states[-1].unbind(1), kept_since_start[-1].unbind(1), strict=True):
        received.append(state)
        state = torch.addcmul(last, a, state)
    h = torch.addcmul(
        torch.stack(states, 2),
        torch.stack(kept_since_start, 2),
        torch.stack(received, 1)[:, :, None],
    )
    return h.flatten(1, 2)[:, :T].to(x_BTN.dtype), state


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
    """Torch implementation of `op.selective_scan`."""
    wide = _wide(x_BTN)
    x, dt, A, B, C, D = (y.to(wide) for y in (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N))
    state = _first(state_BNS, (len(x), *A.shape), x_BTN)
    begins_BT = None if segment_ids is None else _begins(segment_ids)
    y_BTN, state = Selective.apply(x, dt, A, B, C, state, begins_BT)
    return (y_BTN + D * x).to(x_BTN.dtype), state


class Selective(torch.autograd.Function):
    """(y_BTN, state_BNS), BLOCK tokens at a time; the backward recomputes their states.

    With a_t = e^{dt_t A}, u = dt x and dh_t = C_t dy_t^T + a_{t+1} dh_{t+1},

        dC = h dy   dB = dh u   du = B^T dh   d(dt A) = dh h_{t-1} a
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTN: Tensor,
        dt_BTN: Tensor,
        A_NS: Tensor,
        B_BTS: Tensor,
        C_BTS: Tensor,
        state_BNS: Tensor,
        begins_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        A_SN, states, reads = A_NS.mT.contiguous(), [state_BNS.mT], []
        for x, dt, B, C, begins in _blocks(x_BTN, dt_BTN, B_BTS, C_BTS, begins_BT):
            _, h_CBSN = _states(x, dt, A_SN, B, begins, states[-1])
            states.append(h_CBSN[-1].clone())
            reads.append((C[:, :, None] @ h_CBSN).squeeze(-2))
        *starts, last_BSN = states
        ctx.save_for_backward(x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, begins_BT, *starts)
        return torch.cat(reads).transpose(0, 1), last_BSN.mT

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # decorated, ctx has no name
        ctx: Any, dy_BTN: Tensor, dstate_BNS: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, begins_BT, *starts = ctx.saved_tensors
        A_SN, arriving_BSN, gradients = A_NS.mT.contiguous(), dstate_BNS.mT, []
        dA_SN = torch.zeros_like(A_SN)
        blocks = [*_blocks(x_BTN, dt_BTN, B_BTS, C_BTS, begins_BT, dy_BTN)]
        for (x, dt, B, C, begins, dy), start in zip(blocks[::-1], starts[::-1], strict=True):
            kept, h = _states(x, dt, A_SN, B, begins, start)
            dh = C[..., None] * dy[:, :, None]
            dh[-1] += arriving_BSN
            for t in range(len(dh) - 1, 0, -1):
                dh[t - 1].addcmul_(kept[t], dh[t])
            arriving_BSN = kept[0] * dh[0]
            du = (B[:, :, None] @ dh).squeeze(-2)
            dB, dC = (dh * (dt * x)[:, :, None]).sum(-1), (h * dy[:, :, None]).sum(-1)
            exponent = kept.mul_(dh)
            exponent[0] *= start
            exponent[1:] *= h[:-1]
            dA_SN += (exponent * dt[:, :, None]).sum((0, 1))
            gradients.append((du * dt, du * x + (exponent * A_SN).sum(-2), dB, dC))
        dx, ddt, dB, dC = (torch.cat(x[::-1]).transpose(0, 1) for x in zip(*gradients, strict=True))
        return dx, ddt, dA_SN.mT, dB, dC, arriving_BSN.mT, None


def _blocks(*inputs_BT: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Each input in blocks of BLOCK tokens [C, B, ...], one tuple per block; None stays None."""
    parts = (
        repeat(None) if x is None else x.transpose(0, 1).contiguous().split(BLOCK)
        for x in inputs_BT
    )
    yield from zip(*parts, strict=False)


def _states(
    x_CBN: Tensor,
    dt_CBN: Tensor,
    A_SN: Tensor,
    B_CBS: Tensor,
    begins_CB: Tensor | None,
    state_BSN: Tensor,
) -> tuple[Tensor, Tensor]:
    """(decay factors, states) of each token, [C, B, S, N]: few states, many channels."""
    kept = (dt_CBN[:, :, None] * (math.log2(math.e) * A_SN)).exp2_()  # a third of exp's time
    if begins_CB is not None:
        kept.masked_fill_(begins_CB[..., None, None], 0)
    h = B_CBS[..., None] * (dt_CBN * x_CBN)[:, :, None]
    for h_BSN, kept_BSN in zip(h, kept, strict=True):
        h_BSN.addcmul_(kept_BSN, state_BSN)
        state_BSN = h_BSN
    return kept, h


def _products(rows: Tensor, columns: Tensor, sums: Tensor) -> Tensor:
    """A[x, y]_ij = sum_k rows[x]_ik columns[y]_jk e^{G_ik - G_jk} for j <= i, else 0; G is `sums`.

    rows [X, ..., C, K], columns [Y, ..., C, K]. Exponents of the BLOCK-sized blocks on the diagonal
    are relative to their middle; then blocks are joined two by two, the square between them
    relative to the end of the first, so that no exponent there is positive.
    """
    size = BLOCK
    blocks_of_sums = sums.unflatten(-2, (-1, size))
    middle = blocks_of_sums[..., size // 2 - 1, None, :]
    left = rows.unflatten(-2, (-1, size)) * (blocks_of_sums - middle).exp()
    right = columns.unflatten(-2, (-1, size)) * (middle - blocks_of_sums).exp()
    A = (left[:, None] @ right.mT).tril()
    while size < sums.shape[-2]:
        before, after = sums.unflatten(-2, (-1, 2, size)).unbind(-3)
        border = before[..., -1:, :]
        left = rows.unflatten(-2, (-1, 2, size))[..., 1, :, :] * (after - border).exp()
        right = columns.unflatten(-2, (-1, 2, size))[..., 0, :, :] * (border - before).exp()
        first, second = A.unflatten(-3, (-1, 2)).unbind(-3)
        lower = torch.cat([left[:, None] @ right.mT, second], -1)
        A = torch.cat([F.pad(first, (0, size)), lower], -2)
        size *= 2
    return A.squeeze(-3)


def _even(
    tokens: list[Tensor], segment_ids: Tensor | None, chunk: int
) -> tuple[list[Tensor], Tensor | None, int]:
    """Inputs padded with zeros, which neither decay nor write, to whole chunks of 2^n tokens."""
    T = tokens[0].shape[1]
    chunk = min(chunk, max(BLOCK, 1 << (T - 1).bit_length()))
    extra = -T % chunk
    tokens = [F.pad(x, [0, 0] * (x.dim() - 2) + [0, extra]) for x in tokens]
    if segment_ids is not None:
        segment_ids = torch.cat([segment_ids, segment_ids[:, -1:].expand(-1, extra)], 1)
    return tokens, segment_ids, chunk


def _segment_masks(segment_ids: Tensor | None, T: int, chunk: int) -> Iterator[SegmentMasks | None]:
    for start in range(0, T, chunk):
        if segment_ids is None:
            yield None
            continue
        of_BC, before_B1 = (
            segment_ids[:, start : start + chunk],
            segment_ids[:, max(start - 1, 0), None],
        )
        yield SegmentMasks(
            different_segment_B1CC=(of_BC[:, :, None] != of_BC[:, None, :])[:, None],
            after_first_segment_B1C1=(of_BC != before_B1)[:, None, :, None],
            before_last_segment_B1C1=(of_BC != of_BC[:, -1:])[:, None, :, None],
        )


def _begins(segment_ids: Tensor) -> Tensor:
    """Whether a token starts a segment, other than the first of its row."""
    return segment_ids != torch.cat([segment_ids[:, :1], segment_ids[:, :-1]], 1)


def _within_segments(products: Tensor, masks: SegmentMasks | None) -> Tensor:
    return products if masks is None else products.masked_fill(masks.different_segment_B1CC, 0)


def _from_start(sums: Tensor, masks: SegmentMasks | None) -> Tensor:
    return (
        sums.exp() if masks is None else sums.exp().masked_fill(masks.after_first_segment_B1C1, 0)
    )


def _to_end(sums: Tensor, masks: SegmentMasks | None) -> Tensor:
    decayed = (sums[..., -1:, :] - sums).exp()
    return decayed if masks is None else decayed.masked_fill(masks.before_last_segment_B1C1, 0)


def _next_row(x: Tensor) -> Tensor:
    """x shifted down by one row; the first is zero."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0))


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """(I + strictly lower part)^{-1} right."""
    return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)


def _first(state: Tensor | None, shape: tuple[int, ...], values: Tensor) -> Tensor:
    wide = _wide(values)
    return values.new_zeros(shape, dtype=wide) if state is None else state.to(wide)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
