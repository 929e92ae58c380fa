"""Gradients of the states, from the last chunk to the first, and of the values (Triton)."""

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
def bwd_state(
    q_ptr,
    e_ptr,
    k_ptr,
    b_ptr,
    do_ptr,
    sum_ptr,
    beta_ptr,
    segment_ids_ptr,
    A_ptr,
    A_b_ptr,
    P_ptr,
    inverse_ptr,
    dfinal_ptr,
    dv_ptr,
    Y_ptr,
    dS_ptr,
    dinitial_ptr,
    q_stride,
    k_stride,
    tokens,
    heads,
    scale,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_CHANNEL_DECAY: tl.constexpr,
    USE_DELTA_RULE: tl.constexpr,
    IS_RWKV7: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    PRECISION: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Linear recurrence, backward over chunk states: dV, and dS after each chunk.

    The adjoint of `fwd_state`; it needs that one's inverse, none of its results. With
    dW = A^T dO + k_ dS:

    dV = dW, or for the delta rule dV = Y = (I + P beta)^{-T} beta dW
    dS <- e^{G_C} dS + q^^T dO, with the delta rule or RWKV-7 less e^^T Y
    RWKV-7: Y = (I + P_b)^{-T} (A_b^T dO + b_ dS) and dV = dW - P^T Y

    Stores each dS, and Y for RWKV-7. A program takes BV values of one head. FLOPs and bytes are
    those of `fwd_state`.
    """
    head = tl.program_id(0).to(tl.int64)
    b = head // heads
    h = (head % heads).to(tl.int32)
    i = tl.arange(0, C)
    d = tl.arange(0, BK)
    f = tl.program_id(1) * BV + tl.arange(0, BV)
    chunks = tl.cdiv(tokens, C)
    dtype = do_ptr.dtype.element_ty
    at_state = d[:, None] * V + f[None, :]
    in_state = (d[:, None] < K) & (f[None, :] < V)

    dS = tl.load(dfinal_ptr + head * K * V + at_state, mask=in_state, other=0.0)
    for later in tl.range(chunks, disable_licm=True):
        chunk = chunks - 1 - later
        start = chunk * C
        token = b * tokens + start
        of_head = token * heads + h
        in_sequence = (start + i < tokens)[:, None]
        in_keys = in_sequence & (d[None, :] < K)
        in_values = in_sequence & (f[None, :] < V)
        at_values = i[:, None] * (heads * V) + f[None, :]
        at_keys = i[:, None] * k_stride + d[None, :]
        at_pairs = i[:, None] * (heads * C) + i[None, :]
        state = ((b * chunks + chunk) * heads + h) * K * V
        tl.store(dS_ptr + state + at_state, dS.to(dtype), mask=in_state)
        dS_now = dS.to(dtype)

        q = q_ptr + token * q_stride + h // R * K
        q = tl.load(q + i[:, None] * q_stride + d[None, :], mask=in_keys, other=0.0)
        keys = token * k_stride + h // R * K
        k = tl.load(k_ptr + keys + at_keys, mask=in_keys, other=0.0)
        do = tl.load(do_ptr + of_head * V + at_values, mask=in_values, other=0.0)
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
            AT = tl.trans(tl.load(A_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0))
        else:
            DT = within(
                sum_ptr,
                segment_ids_ptr,
                b,
                h,
                start,
                tokens,
                heads,
                USE_SCALAR_DECAY,
                USE_SEGMENT_IDS,
                True,
                C,
            )
            AT = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            AT = (scale * AT * DT).to(dtype)

        dv = tl.dot(k, dS_now, input_precision=PRECISION) * to_end
        dv = tl.dot(AT, do, dv, input_precision=PRECISION)
        if USE_CHANNEL_DECAY:
            sums = sum_ptr + ((b * tokens + tl.minimum(start + C, tokens) - 1) * heads + h) * K
            G_last = tl.load(sums + d, mask=d < K, other=0.0)
            dS *= (tl.exp2(G_last) * through)[:, None]
        else:
            dS *= through
        read = (do * (scale * from_start)).to(dtype)
        dS = tl.dot(tl.trans(q), read, dS, input_precision=PRECISION)
        if USE_DELTA_RULE or IS_RWKV7:
            if USE_CHANNEL_DECAY:
                e = tl.load(e_ptr + keys + at_keys, mask=in_keys, other=0.0)
            else:
                e = k
            inverse = tl.load(inverse_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
            if USE_DELTA_RULE:
                beta = tl.load(beta_ptr + of_head + i * heads, mask=start + i < tokens, other=0.0)
                dU = dv * beta[:, None]
            else:
                A_b = tl.load(A_b_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
                b_key = tl.load(b_ptr + keys + at_keys, mask=in_keys, other=0.0)
                dU = tl.dot(b_key, dS_now, input_precision=PRECISION) * to_end
                dU = tl.dot(tl.trans(A_b), do, dU, input_precision=PRECISION)
            Y = tl.dot(tl.trans(inverse), dU.to(dtype), input_precision=PRECISION)
            if USE_DELTA_RULE:
                dv = Y
            else:
                P = tl.load(P_ptr + of_head * C + at_pairs, mask=in_sequence, other=0.0)
                dv -= tl.dot(tl.trans(P), Y.to(dtype), input_precision=PRECISION)
                tl.store(Y_ptr + of_head * V + at_values, Y.to(dtype), mask=in_values)
            correction = (-Y * from_start).to(dtype)
            dS = tl.dot(tl.trans(e), correction, dS, input_precision=PRECISION)
        tl.store(dv_ptr + of_head * V + at_values, dv.to(dtype), mask=in_values)
    tl.store(dinitial_ptr + head * K * V + at_state, dS, mask=in_state)
