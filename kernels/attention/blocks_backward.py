"""Block-sparse attention, backward (Triton), without atomics; gradients as in backward.py.

dq loops over the token's list again; dk and dv over the inverted lists, the tokens of each block.
"""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width,
# N blocks per token, J blocks of keys

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .tiles import EXACT, LOG2_E, gather_rows, load_rows, scatter_rows, store_rows


@triton.jit(do_not_specialize=["num_listed"])
def blocks_backward_queries(
    q_ptr,
    k_ptr,
    v_ptr,
    blocks_ptr,
    start_ptr,
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
    num_listed,
    group,
    scale,
    factor,
    USE_SEGMENT_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    K_MAIN: tl.constexpr,
    K_REST: tl.constexpr,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Block-sparse attention, backward: dq of one token and group of heads, tiles of the forward.

    FLOPs: M (4 K + 2 V) for each key listed, padding included.
    """
    t = tl.program_id(0)
    g = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    num_tokens = tl.num_programs(0)
    num_kv_heads = tl.num_programs(1)
    num_heads = num_kv_heads * group
    r = tl.arange(0, M)
    inside = r < group
    h = g * group + r
    q_ptr += b * q_batch + tl.cast(t, tl.int64) * q_token
    k_ptr += b * k_batch + g * k_head
    v_ptr += b * v_batch + g * v_head
    blocks_ptr += ((b * num_kv_heads + g) * num_tokens + t) * num_listed
    first = tl.load(start_ptr + b * num_tokens + t) if USE_SEGMENT_IDS else 0

    q = gather_rows(q_ptr, h * q_head, inside, K, K_MAIN)
    dq = tl.zeros([M, K_MAIN], tl.float32)
    if K_REST > 0:
        q_rest = gather_rows(q_ptr + K_MAIN, h * q_head, inside, K - K_MAIN, K_REST)
        dq_rest = tl.zeros([M, K_REST], tl.float32)
    do = gather_rows(do_ptr + (b * num_tokens + t) * num_heads * V, h * V, inside, V, V_TILE)
    row = (b * num_heads + h) * num_tokens + t
    lse = tl.load(lse_ptr + row, mask=inside, other=0.0) * LOG2_E
    delta = tl.load(delta_ptr + row, mask=inside, other=0.0)
    for step in range(num_listed * (BLOCK // N)):
        block = tl.load(blocks_ptr + step // (BLOCK // N))
        key = block * BLOCK + step % (BLOCK // N) * N + tl.arange(0, N)
        visible = (key >= first) & (key <= t)
        at = key.to(tl.int64)
        k = gather_rows(k_ptr, at * k_token, visible, K, K_MAIN)
        s = tl.dot(q, tl.trans(k), input_precision=EXACT)
        if K_REST > 0:
            k_rest = gather_rows(k_ptr + K_MAIN, at * k_token, visible, K - K_MAIN, K_REST)
            s += tl.dot(q_rest, tl.trans(k_rest), input_precision=EXACT)
        p = tl.where(visible[None, :], tl.exp2(s * factor - lse[:, None]), 0.0)
        v = gather_rows(v_ptr, at * v_token, visible, V, V_TILE)
        dp = tl.dot(do, tl.trans(v), input_precision=EXACT)
        ds = (p * (dp - delta[:, None])).to(k.dtype)
        dq = tl.dot(ds, k, dq, input_precision=EXACT)
        if K_REST > 0:
            dq_rest = tl.dot(ds, k_rest, dq_rest, input_precision=EXACT)

    dq_ptr += (b * num_tokens + t) * num_heads * K
    scatter_rows(dq_ptr, dq * scale, h * K, inside, K, K_MAIN)
    if K_REST > 0:
        scatter_rows(dq_ptr + K_MAIN, dq_rest * scale, h * K, inside, K - K_MAIN, K_REST)


@triton.jit(do_not_specialize=["num_tokens", "num_listed", "num_blocks"])
def blocks_backward_keys(
    q_ptr,
    k_ptr,
    v_ptr,
    query_index_ptr,
    offset_ptr,
    start_ptr,
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
    num_listed,
    num_blocks,
    group,
    scale,
    factor,
    USE_SEGMENT_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    K_MAIN: tl.constexpr,
    K_REST: tl.constexpr,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Block-sparse attention, backward: dk and dv of N keys, over the tokens that list their block.

    Block j is listed by the tokens query_index[offset[j]] .. query_index[offset[j + 1] - 1]. A tile
    of M rows holds M / HEADS of them, each with all heads of the group, padded to HEADS.
    FLOPs: 4 HEADS (K + V) for each token and key.
    """
    top = tl.program_id(0) * N
    g = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    num_kv_heads = tl.num_programs(1)
    num_heads = num_kv_heads * group
    r = tl.arange(0, M)
    h = g * group + r % HEADS
    key = top + tl.arange(0, N)
    q_ptr += b * q_batch
    k_ptr += b * k_batch + g * k_head
    v_ptr += b * v_batch + g * v_head
    query_index_ptr += (b * num_kv_heads + g) * num_tokens * num_listed
    offset_ptr += (b * num_kv_heads + g) * (num_blocks + 1) + top // BLOCK
    begin = tl.load(offset_ptr)
    end = tl.load(offset_ptr + 1)

    k = load_rows(k_ptr, top, k_token, num_tokens, K, N, K_MAIN, True)
    v = load_rows(v_ptr, top, v_token, num_tokens, V, N, V_TILE, True)
    dk = tl.zeros([N, K_MAIN], tl.float32)
    dv = tl.zeros([N, V_TILE], tl.float32)
    if K_REST > 0:
        k_rest = load_rows(k_ptr + K_MAIN, top, k_token, num_tokens, K - K_MAIN, N, K_REST, True)
        dk_rest = tl.zeros([N, K_REST], tl.float32)
    for at in range(begin, end, M // HEADS):
        entry = at + r // HEADS
        inside = (entry < end) & (r % HEADS < group)
        token = tl.load(query_index_ptr + entry, mask=inside, other=0)
        row = (b * num_heads + h) * num_tokens + token
        do_row = ((b * num_tokens + token) * num_heads + h) * V
        do = gather_rows(do_ptr, do_row, inside, V, V_TILE)
        delta = tl.load(delta_ptr + row, mask=inside, other=0.0)
        dp = tl.dot(v, tl.trans(do), input_precision=EXACT) - delta[None, :]

        q_row = token.to(tl.int64) * q_token + h * q_head
        q = gather_rows(q_ptr, q_row, inside, K, K_MAIN)
        s = tl.dot(k, tl.trans(q), input_precision=EXACT)
        if K_REST > 0:
            q_rest = gather_rows(q_ptr + K_MAIN, q_row, inside, K - K_MAIN, K_REST)
            s += tl.dot(k_rest, tl.trans(q_rest), input_precision=EXACT)
        lse = tl.load(lse_ptr + row, mask=inside, other=0.0) * LOG2_E
        visible = inside[None, :] & (key[:, None] <= token[None, :])
        if USE_SEGMENT_IDS:
            first = tl.load(start_ptr + b * num_tokens + token, mask=inside, other=0)
            visible = visible & (key[:, None] >= first[None, :])
        p = tl.where(visible, tl.exp2(s * factor - lse[None, :]), 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=EXACT)
        ds = (p * dp).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision=EXACT)
        if K_REST > 0:
            dk_rest = tl.dot(ds, q_rest, dk_rest, input_precision=EXACT)

    dk_ptr += (b * num_tokens * num_kv_heads + g) * K
    dv_ptr += (b * num_tokens * num_kv_heads + g) * V
    stride = num_kv_heads * K
    store_rows(dk_ptr, dk * scale, top, stride, num_tokens, K, N, K_MAIN)
    store_rows(dv_ptr, dv, top, num_kv_heads * V, num_tokens, V, N, V_TILE)
    if K_REST > 0:
        dk_rest *= scale
        store_rows(dk_ptr + K_MAIN, dk_rest, top, stride, num_tokens, K - K_MAIN, N, K_REST)
