"""The state from chunk to chunk in Triton: what it gives back and what it takes in."""

# B batch, T tokens, N chunks, C tokens of a chunk, G key heads, H value heads, K key width, V value width

# Triton takes an annotation on a kernel's argument for its type at run time; a constexpr that picks
# branches, and a range that is for the device, mean nothing outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl

from .tiles import edges, within


@triton.jit(do_not_specialize=["tokens"])
def scan(
    q_ptr,
    e_ptr,
    k_ptr,
    b_ptr,
    v_ptr,
    sum_ptr,
    beta_ptr,
    segment_ids_ptr,
    A_ptr,
    A_b_ptr,
    P_ptr,
    inverse_ptr,
    initial_ptr,
    o_ptr,
    U_ptr,
    S_ptr,
    final_ptr,
    q_stride,
    k_stride,
    v_stride,
    tokens,
    heads,
    scale,
    DECAY: tl.constexpr,
    DELTA: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    INITIAL: tl.constexpr,
    SAVE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    PRECISION: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Chunk after chunk of one head and BV of its values, S being the state before the chunk:

    O = q^ S + A W and S <- e^{G_C} S + k_^T W, where W is V, or with DELTA 1 beta U, where
    U = (I + P beta)^{-1} (V - e^ S), e = k: what the state does not yet give back of V.
    DELTA 2 writes V and U: O = q^ S + A V + A_b U and S <- e^{G_C} S + k_^T V + b_^T U, where
    U = -(I + P_b)^{-1} (P V + e^ S).

    With a decay for each channel q, e, k and b come weighted (`channel_gate`), else the weights are
    applied here. Without DELTA and with at most one decay for a head A is formed here.
    SAVE keeps U and each S that a chunk begins with.
    FLOPs per chunk and head: 4 C K V + 2 C^2 (K + V); with DELTA 1 6 C K V + 4 C^2 V; with DELTA 2
    8 C K V + 8 C^2 V. Bytes per token and head, b to an element: 2 V b + 2 K b, the latter again
    for each block of values; with DELTA 1 2 C b more, with DELTA 2 4 C b + 2 K b.
    """
    head = tl.program_id(0).to(tl.int64)
    b = head // heads
    h = (head % heads).to(tl.int32)
    i = tl.arange(0, C)
    d = tl.arange(0, BK)
    e = tl.program_id(1) * BV + tl.arange(0, BV)
    chunks = tl.cdiv(tokens, C)
    dtype = v_ptr.dtype.element_ty
    at_state = d[:, None] * V + e[None, :]
    in_state = (d[:, None] < K) & (e[None, :] < V)

    S = tl.zeros([BK, BV], tl.float32)
    if INITIAL:
        S = tl.load(initial_ptr + head * K * V + at_state, mask=in_state, other=0.0)
    for chunk in tl.range(chunks, disable_licm=True):
        start = chunk * C
        token = b * tokens + start
        of_head = token * heads + h
        in_text = (start + i < tokens)[:, None]
        in_keys = in_text & (d[None, :] < K)
        in_values = in_text & (e[None, :] < V)
        at_values = i[:, None] * (heads * V) + e[None, :]
        at_keys = i[:, None] * k_stride + d[None, :]
        at_pairs = i[:, None] * (heads * C) + i[None, :]
        if SAVE:
            state = ((b * chunks + chunk) * heads + h) * K * V
            tl.store(S_ptr + state + at_state, S.to(dtype), mask=in_state)
        S_now = S.to(dtype)

        q = q_ptr + token * q_stride + h // R * K
        q = tl.load(q + i[:, None] * q_stride + d[None, :], mask=in_keys, other=0.0)
        keys = token * k_stride + h // R * K
        k = tl.load(k_ptr + keys + at_keys, mask=in_keys, other=0.0)
        v = v_ptr + token * v_stride + h * V
        v = tl.load(v + i[:, None] * v_stride + e[None, :], mask=in_values, other=0.0)
        from_start, to_end, through = edges(
            sum_ptr, segment_ids_ptr, b, h, start, tokens, heads, DECAY, USE_SEGMENT_IDS, C
        )
        from_start, to_end = from_start[:, None], to_end[:, None]
        if DECAY == 2 or DELTA:
            A = tl.load(A_ptr + of_head * C + at_pairs, mask=in_text, other=0.0)
        else:
            D = within(
                sum_ptr,
                segment_ids_ptr,
                b,
                h,
                start,
                tokens,
                heads,
                DECAY,
                USE_SEGMENT_IDS,
                False,
                C,
            )
            A = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            A = (scale * A * D).to(dtype)

        W = v
        if DELTA:
            if DECAY == 2:
                beta = tl.load(e_ptr + keys + at_keys, mask=in_keys, other=0.0)
            else:
                beta = k
            inverse = tl.load(inverse_ptr + of_head * C + at_pairs, mask=in_text, other=0.0)
            U = -tl.dot(beta, S_now, input_precision=PRECISION) * from_start
            if DELTA == 1:
                U += v
            else:
                P = tl.load(P_ptr + of_head * C + at_pairs, mask=in_text, other=0.0)
                U -= tl.dot(P, v, input_precision=PRECISION)
            U = tl.dot(inverse, U.to(dtype), input_precision=PRECISION)
            if SAVE:
                tl.store(U_ptr + of_head * V + at_values, U.to(dtype), mask=in_values)
            if DELTA == 1:
                beta = tl.load(beta_ptr + of_head + i * heads, mask=start + i < tokens, other=0.0)
                W = beta[:, None] * U

        o = tl.dot(q, S_now, input_precision=PRECISION) * (scale * from_start)
        o = tl.dot(A, W.to(dtype), o, input_precision=PRECISION)
        if DECAY == 2:
            sums = sum_ptr + ((b * tokens + tl.minimum(start + C, tokens) - 1) * heads + h) * K
            G_last = tl.load(sums + d, mask=d < K, other=0.0)
            S *= (tl.exp2(G_last) * through)[:, None]
        else:
            S *= through
        S = tl.dot(tl.trans(k), (W * to_end).to(dtype), S, input_precision=PRECISION)
        if DELTA == 2:
            A_b = tl.load(A_b_ptr + of_head * C + at_pairs, mask=in_text, other=0.0)
            o = tl.dot(A_b, U.to(dtype), o, input_precision=PRECISION)
            second = tl.load(b_ptr + keys + at_keys, mask=in_keys, other=0.0)
            S = tl.dot(tl.trans(second), (U * to_end).to(dtype), S, input_precision=PRECISION)
        tl.store(o_ptr + of_head * V + at_values, o.to(dtype), mask=in_values)
    tl.store(final_ptr + head * K * V + at_state, S, mask=in_state)
