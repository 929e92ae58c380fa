"""Flash attention, backward (Triton), without atomics: deterministic.

With p = exp(s - lse) from the forward's s, the gradients are

    dv = p^T do    dp = do v^T    ds = p * (dp - delta)    dq = scale * ds k    dk = scale * ds^T q

where delta = rowsum(o * do) - dlse, since d lse / d s = p: the gradient of lse is free.
With a soft cap, ds also takes 1 - tanh^2.
"""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .tiles import EXACT, LOG2_E, keys_seen, load_rows, queries_seeing, span, store_rows, tanh


@triton.jit(do_not_specialize=["num_tokens"])
def backward_delta(
    o_ptr,
    do_ptr,
    dlse_ptr,
    delta_ptr,
    num_tokens,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    M: tl.constexpr,
):
    """Flash attention, backward, first pass: delta = rowsum(o * do) - dlse of M tokens of a head.

    Bytes per row, b per element: 2 b V + 8.
    """
    top = tl.program_id(0) * M
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(1)
    at = (b * num_tokens * num_heads + h) * V
    o = load_rows(o_ptr + at, top, num_heads * V, num_tokens, V, M, V_TILE, True)
    do = load_rows(do_ptr + at, top, num_heads * V, num_tokens, V, M, V_TILE, True)
    token = top + tl.arange(0, M)
    row = (b * num_heads + h) * num_tokens + token
    dlse = tl.load(dlse_ptr + row, mask=token < num_tokens, other=0.0)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) - dlse
    tl.store(delta_ptr + row, delta, mask=token < num_tokens)


@triton.jit(do_not_specialize=["num_tokens", "window"])
def backward_keys(
    q_ptr,
    k_ptr,
    v_ptr,
    start_ptr,
    end_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    num_tokens,
    group,
    window,
    scale,
    softcap_scale,
    factor,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    K: tl.constexpr,
    K_MAIN: tl.constexpr,
    K_REST: tl.constexpr,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Flash attention, backward: dk and dv of N keys, or one of the two.

    A program loops over the queries of all heads that share the keys.

    s^T = k q^T is formed, so that p^T and ds^T need no transposed accumulator. Tiles and heads are
    one loop and every tile is masked: nested or separate loops would spill.
    FLOPs: 4 (K + V) per query, head and key seen; 2 K more with dk and dv in separate launches.
    """
    top = tl.program_id(0) * N
    g = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    num_kv_heads = tl.num_programs(1)
    num_heads = num_kv_heads * group
    q_ptr += b * q_batch
    k_ptr += b * k_batch + g * k_head
    v_ptr += b * v_batch + g * v_head
    do_ptr += b * num_tokens * num_heads * V
    if USE_SEGMENT_IDS:
        start_ptr += b * num_tokens
        end_ptr += b * num_tokens
    first, last = queries_seeing(
        top + tl.arange(0, N),
        start_ptr,
        end_ptr,
        num_tokens,
        window,
        CAUSAL,
        WINDOW,
        USE_SEGMENT_IDS,
        M,
    )

    k = load_rows(k_ptr, top, k_token, num_tokens, K, N, K_MAIN, True)
    if K_REST > 0:
        k_rest = load_rows(k_ptr + K_MAIN, top, k_token, num_tokens, K - K_MAIN, N, K_REST, True)
    if DK:
        v = load_rows(v_ptr, top, v_token, num_tokens, V, N, V_TILE, True)
        dk = tl.zeros([N, K_MAIN], tl.float32)
        if K_REST > 0:
            dk_rest = tl.zeros([N, K_REST], tl.float32)
    if DV:
        dv = tl.zeros([N, V_TILE], tl.float32)
    begin = tl.min(first, 0) // M * M
    num_tiles = tl.cdiv(tl.max(last, 0) + 1 - begin, M)
    for step in range(num_tiles * group):
        h = g * group + step % group
        at = begin + step // group * M
        query = at + tl.arange(0, M)
        row = (b * num_heads + h) * num_tokens + query
        do = load_rows(do_ptr + h * V, at, num_heads * V, num_tokens, V, M, V_TILE, True)
        if DK:
            delta = tl.load(delta_ptr + row, mask=query < num_tokens, other=0.0)
            dp = tl.dot(v, tl.trans(do), input_precision=EXACT) - delta[None, :]

        q_head_ptr = q_ptr + h * q_head
        q = load_rows(q_head_ptr, at, q_token, num_tokens, K, M, K_MAIN, True)
        s = tl.dot(k, tl.trans(q), input_precision=EXACT)
        if K_REST > 0:
            q_rest = load_rows(
                q_head_ptr + K_MAIN, at, q_token, num_tokens, K - K_MAIN, M, K_REST, True
            )
            s += tl.dot(k_rest, tl.trans(q_rest), input_precision=EXACT)
        if SOFTCAP:
            s = tanh(s * softcap_scale)
        lse = tl.load(lse_ptr + row, mask=query < num_tokens, other=0.0) * LOG2_E
        p = tl.exp2(s * factor - lse[None, :])
        if CAUSAL or USE_SEGMENT_IDS:
            visible = (query[None, :] >= first[:, None]) & (query[None, :] <= last[:, None])
            p = tl.where(visible, p, 0.0)
        if DV:
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=EXACT)
        if DK:
            ds = p * dp
            if SOFTCAP:
                ds *= 1.0 - s * s
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=EXACT)
            if K_REST > 0:
                dk_rest = tl.dot(ds.to(q.dtype), q_rest, dk_rest, input_precision=EXACT)

    if DK:
        dk_ptr += (b * num_tokens * num_kv_heads + g) * K
        stride = num_kv_heads * K
        store_rows(dk_ptr, dk * scale, top, stride, num_tokens, K, N, K_MAIN)
        if K_REST > 0:
            dk_rest *= scale
            store_rows(dk_ptr + K_MAIN, dk_rest, top, stride, num_tokens, K - K_MAIN, N, K_REST)
    if DV:
        dv_ptr += (b * num_tokens * num_kv_heads + g) * V
        store_rows(dv_ptr, dv, top, num_kv_heads * V, num_tokens, V, N, V_TILE)


@triton.jit(do_not_specialize=["num_tokens", "window"])
def backward_queries(
    q_ptr,
    k_ptr,
    v_ptr,
    start_ptr,
    end_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    num_tokens,
    group,
    window,
    scale,
    softcap_scale,
    factor,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    K: tl.constexpr,
    K_MAIN: tl.constexpr,
    K_REST: tl.constexpr,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Flash attention, backward: dq of M queries of a head, over their keys as in the forward.

    FLOPs: 4 K + 2 V per query, head and key seen.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(1)
    q_ptr += b * q_batch + h * q_head
    k_ptr += b * k_batch + h // group * k_head
    v_ptr += b * v_batch + h // group * v_head
    if USE_SEGMENT_IDS:
        start_ptr += b * num_tokens
        end_ptr += b * num_tokens
    top = tile * M
    query = top + tl.arange(0, M)
    first, last = keys_seen(
        query, start_ptr, end_ptr, num_tokens, window, CAUSAL, WINDOW, USE_SEGMENT_IDS
    )

    q = load_rows(q_ptr, top, q_token, num_tokens, K, M, K_MAIN, True)
    dq = tl.zeros([M, K_MAIN], tl.float32)
    if K_REST > 0:
        q_rest = load_rows(q_ptr + K_MAIN, top, q_token, num_tokens, K - K_MAIN, M, K_REST, True)
        dq_rest = tl.zeros([M, K_REST], tl.float32)
    do_ptr += (b * num_tokens * num_heads + h) * V
    do = load_rows(do_ptr, top, num_heads * V, num_tokens, V, M, V_TILE, True)
    row = (b * num_heads + h) * num_tokens + query
    lse = tl.load(lse_ptr + row, mask=query < num_tokens, other=0.0) * LOG2_E
    delta = tl.load(delta_ptr + row, mask=query < num_tokens, other=0.0)
    for phase in tl.static_range(0 if WINDOW or USE_SEGMENT_IDS else 1, 3):
        begin, end = span(first, last, phase, N)
        for at in range(begin, end, N):
            k = load_rows(k_ptr, at, k_token, num_tokens, K, N, K_MAIN, phase != 1)
            s = tl.dot(q, tl.trans(k), input_precision=EXACT)
            if K_REST > 0:
                k_rest = load_rows(
                    k_ptr + K_MAIN, at, k_token, num_tokens, K - K_MAIN, N, K_REST, phase != 1
                )
                s += tl.dot(q_rest, tl.trans(k_rest), input_precision=EXACT)
            if SOFTCAP:
                s = tanh(s * softcap_scale)
            p = tl.exp2(s * factor - lse[:, None])
            if phase != 1:
                key = at + tl.arange(0, N)
                visible = (key[None, :] >= first[:, None]) & (key[None, :] <= last[:, None])
                p = tl.where(visible, p, 0.0)
            v = load_rows(v_ptr, at, v_token, num_tokens, V, N, V_TILE, phase != 1)
            dp = tl.dot(do, tl.trans(v), input_precision=EXACT)
            ds = p * (dp - delta[:, None])
            if SOFTCAP:
                ds *= 1.0 - s * s
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=EXACT)
            if K_REST > 0:
                dq_rest = tl.dot(ds.to(k.dtype), k_rest, dq_rest, input_precision=EXACT)

    dq_ptr += (b * num_tokens * num_heads + h) * K
    stride = num_heads * K
    store_rows(dq_ptr, dq * scale, top, stride, num_tokens, K, M, K_MAIN)
    if K_REST > 0:
        dq_rest *= scale
        store_rows(dq_ptr + K_MAIN, dq_rest, top, stride, num_tokens, K - K_MAIN, M, K_REST)
