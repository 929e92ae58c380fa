"""State passing from chunk to chunk, and the outputs (Triton)."""

# B batch, T tokens, N chunks, C tokens per chunk, G key heads, H value heads, K key width,
# V value width

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl

from .tiles import edges, within


@triton.jit(do_not_specialize=["tokens"])
def fwd_state(
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
    USE_SCALAR_DECAY: tl.constexpr,
    USE_CHANNEL_DECAY: tl.constexpr,
    USE_DELTA_RULE: tl.constexpr,
    IS_RWKV7: tl.constexpr,
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
    """Linear recurrence, forward over chunks: outputs O and states S (S before the chunk).

    O = q^ S + A W and S <- e^{G_C} S + k_^T W, with W = V, or for the delta rule W = beta U and
    U = (I + P beta)^{-1} (V - k^ S), the part of V that the state does not hold yet.
    RWKV-7: O = q^ S + A V + A_b U and S <- e^{G_C} S + k_^T V + b_^T U, with
    U = -(I + P_b)^{-1} (P V + e^ S).

    With a decay per channel q, e, k and b come weighted (`channel_gate`), else they are weighted
    here. Without delta rule, and with at most a scalar decay, A is formed here.
    SAVE stores U and the state before each chunk. A program takes BV values of one head.
    FLOPs per chunk and head: 4 C K V + 2 C^2 (K + V); delta rule 6 C K V + 4 C^2 V; RWKV-7
    8 C K V + 8 C^2 V. Bytes per token and head, b per element: 2 V b + 2 K b, the latter again per
    block of values; delta rule 2 C b more, RWKV-7 4 C b + 2 K b.
    """
    head = tl.program_id(0).to(tl.int64)
    b = head // heads
    h = (head % heads).to(tl.int32)
    i = tl.arange(0, C)
    d = tl.arange(0, BK)
    f = tl.program_id(1) * BV + tl.arange(0, BV)
    chunks = tl.cdiv(tokens, C)
    dtype = v_ptr.dtype.element_ty
    at_state = d[:, None] * V + f[None, :]
    in_state = (d[:, None] < K) & (f[None, :] < V)

    S = tl.zeros([BK, BV], tl.float32)
    if INITIAL:
        S = tl.load(initial_ptr + head * K * V + at_state, mask=in_state, other=0.0)
    for chunk in tl.range(chunks, disable_licm=True):
        start = chunk * C
        token = b * tokens + start
        of_head = token * heads + h
        in_sequence = (start + i < tokens)[:, None]
        in_keys = in_sequence & (d[None, :] < K)
        in_values = in_sequence & (f[None, :] < V)
        at_values = i[:, None] * (heads * V) + f[None, :]
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
        v = tl.load(v + i[:, None] * v_stride + f[None, :], mask=in_values, other=0.0)
        from_start, to_end, through = edges(
            sum_ptr,
            segment_ids_ptr,
            b,
            h,
            start,
            tokens,
            heads,
            USE_SCALAR_DECAY,
            USE_SEGMENT_IDS,
            C,
        )
        from_start, to_end = from_start[:, None], to_end[:, None]
        if USE_CHANNEL_DECAY or USE_DELTA_RULE or IS_RWKV7:
            A = tl.load(A_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
        else:
            D = within(
                sum_ptr,
                segment_ids_ptr,
                b,
                h,
                start,
                tokens,
                heads,
                USE_SCALAR_DECAY,
                USE_SEGMENT_IDS,
                False,
                C,
            )
            A = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            A = (scale * A * D).to(dtype)

        W = v
        if USE_DELTA_RULE or IS_RWKV7:
            if USE_CHANNEL_DECAY:
                e = tl.load(e_ptr + keys + at_keys, mask=in_keys, other=0.0)
            else:
                e = k
            inverse = tl.load(inverse_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
            U = -tl.dot(e, S_now, input_precision=PRECISION) * from_start
            if USE_DELTA_RULE:
                U += v
            else:
                P = tl.load(P_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
                U -= tl.dot(P, v, input_precision=PRECISION)
            U = tl.dot(inverse, U.to(dtype), input_precision=PRECISION)
            if SAVE:
                tl.store(U_ptr + of_head * V + at_values, U.to(dtype), mask=in_values)
            if USE_DELTA_RULE:
                beta = tl.load(beta_ptr + of_head + i * heads, mask=start + i < tokens, other=0.0)
                W = beta[:, None] * U

        o = tl.dot(q, S_now, input_precision=PRECISION) * (scale * from_start)
        o = tl.dot(A, W.to(dtype), o, input_precision=PRECISION)
        if USE_CHANNEL_DECAY:
            sums = sum_ptr + ((b * tokens + tl.minimum(start + C, tokens) - 1) * heads + h) * K
            G_last = tl.load(sums + d, mask=d < K, other=0.0)
            S *= (tl.exp2(G_last) * through)[:, None]
        else:
            S *= through
        S = tl.dot(tl.trans(k), (W * to_end).to(dtype), S, input_precision=PRECISION)
        if IS_RWKV7:
            A_b = tl.load(A_b_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
            o = tl.dot(A_b, U.to(dtype), o, input_precision=PRECISION)
            b_key = tl.load(b_ptr + keys + at_keys, mask=in_keys, other=0.0)
            S = tl.dot(tl.trans(b_key), (U * to_end).to(dtype), S, input_precision=PRECISION)
        tl.store(o_ptr + of_head * V + at_values, o.to(dtype), mask=in_values)
    tl.store(final_ptr + head * K * V + at_state, S, mask=in_state)
