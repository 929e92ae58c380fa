"""Flash-Decoding over a paged cache (Triton): partial softmax per split of keys, then combined."""

# B rows (sequences), Q new tokens, H query heads, G key/value heads, K key width, V value width,
# S splits, P pages in all

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .tiles import EXACT, LN_2, LOWEST, gather_rows, scatter_rows, tanh


@triton.jit(do_not_specialize=["pages_per_row", "window"])
def decode_split(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    page_table_ptr,
    length_ptr,
    acc_ptr,
    m_ptr,
    l_ptr,
    num_rows,
    num_queries,
    num_kv_heads,
    group,
    pages_per_row,
    window,
    softcap_scale,
    factor,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    QUANTIZED: tl.constexpr,
    SHARED: tl.constexpr,
    PAGE: tl.constexpr,
    K: tl.constexpr,
    K_CUT: tl.constexpr,
    K_MAIN: tl.constexpr,
    K_REST: tl.constexpr,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Decode attention, split: partial softmax over a part of a row's keys.

    m = max(s), l = sum(2^(s - m)), acc = 2^(s - m) v, with s in base 2.

    The queries of all heads that share a key head, times the Q new tokens, are the rows of a tile
    of M; new token i stands at lengths - Q + i. A quantized key's scale multiplies its column of s,
    a value's its column of p: never the tile. With SHARED, the value is the key's first V numbers.
    Bytes per key, b per element: b (K + V), with SHARED b K. FLOPs: 2 (K + V) per row and key.
    """
    num_tiles = tl.cdiv(group * num_queries, M)
    tile = tl.program_id(0) % num_tiles
    g = tl.program_id(0) // num_tiles % num_kv_heads
    b = (tl.program_id(0) // num_tiles // num_kv_heads).to(tl.int64)
    split = tl.program_id(1)
    r = tile * M + tl.arange(0, M)
    inside = r < group * num_queries
    query = r // group
    row = (b * num_queries + query) * num_kv_heads * group + g * group + r % group

    length = tl.load(length_ptr + b)
    last = length - num_queries + query
    first = tl.maximum(last - window + 1, 0) if WINDOW else last * 0
    oldest = tl.maximum(length - num_queries - window + 1, 0) if WINDOW else 0
    share = tl.cdiv(length - oldest, tl.num_programs(1) * N) * N
    begin = oldest + split * share
    end = tl.minimum(begin + share, length)

    q = gather_rows(q_ptr, row * K, inside, K_CUT, K_MAIN)
    if K_REST > 0:
        q_rest = gather_rows(q_ptr + K_CUT, row * K, inside, K - K_CUT, K_REST)
    m = tl.full([M], LOWEST, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, V_TILE], tl.float32)
    for at in range(begin, end, N):
        token = at + tl.arange(0, N)
        held = token < end
        page = tl.load(page_table_ptr + b * pages_per_row + token // PAGE, mask=held, other=0)
        place = (page.to(tl.int64) * PAGE + token % PAGE) * num_kv_heads + g
        k = gather_rows(k_ptr, place * K, held, K_CUT, K_MAIN)
        if QUANTIZED:
            k = k.to(tl.float32).to(q.dtype)
        s = tl.dot(q, tl.trans(k), input_precision=EXACT)
        if K_REST > 0:
            k_rest = gather_rows(k_ptr + K_CUT, place * K, held, K - K_CUT, K_REST)
            if QUANTIZED:
                k_rest = k_rest.to(tl.float32).to(q.dtype)
            s += tl.dot(q_rest, tl.trans(k_rest), input_precision=EXACT)
        if QUANTIZED:
            k_scale = tl.load(k_scale_ptr + place, mask=held, other=0.0)
            s *= k_scale[None, :]
        if SOFTCAP:
            s = tanh(s * softcap_scale)
        visible = (token[None, :] >= first[:, None]) & (token[None, :] <= last[:, None])
        s = tl.where(visible & held[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * factor)
        p = tl.exp2(s * factor - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        l = l * rescale + tl.sum(p, 1)
        if SHARED:
            v = k
            if QUANTIZED:
                p *= k_scale[None, :]
        else:
            v = gather_rows(v_ptr, place * V, held, V, V_TILE)
            if QUANTIZED:
                v = v.to(tl.float32).to(q.dtype)
                p *= tl.load(v_scale_ptr + place, mask=held, other=0.0)[None, :]
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=EXACT)
        m = m_new

    row += split.to(tl.int64) * num_rows
    scatter_rows(acc_ptr, acc, row * V, inside, V, V_TILE)
    tl.store(m_ptr + row, m, mask=inside)
    tl.store(l_ptr + row, l, mask=inside)


@triton.jit(do_not_specialize=["num_splits"])
def decode_combine(
    acc_ptr,
    m_ptr,
    l_ptr,
    o_ptr,
    lse_ptr,
    num_splits,
    num_queries,
    num_heads,
    V: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Decode attention, combine: o = sum(w acc) / sum(w l) and lse over the splits.

    lse = log(sum(w l)) + max(m), w = 2^(m - max(m)).

    A program takes COLS numbers of one row. Bytes per row: 4 S (V + 2).
    """
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.num_programs(0)
    split = tl.arange(0, SPLITS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    at = split.to(tl.int64) * num_rows + row
    m = tl.load(m_ptr + at, mask=split < num_splits, other=LOWEST)
    l = tl.load(l_ptr + at, mask=split < num_splits, other=0.0)
    inside = (split < num_splits)[:, None] & (col < V)[None, :]
    acc = tl.load(acc_ptr + at[:, None] * V + col[None, :], mask=inside, other=0.0)

    m_all = tl.max(m, 0)
    w = tl.exp2(m - m_all)
    l_all = tl.sum(w * l, 0)
    total = tl.where(l_all > 0.0, l_all, 1.0)
    o = tl.sum(w[:, None] * acc, 0) / total
    tl.store(o_ptr + row * V + col, o.to(o_ptr.dtype.element_ty), mask=col < V)
    if tl.program_id(1) == 0:
        lse = tl.where(l_all > 0.0, (m_all + tl.log2(total)) * LN_2, float("-inf"))
        h = row % num_heads
        query = row // num_heads % num_queries
        b = row // num_heads // num_queries
        tl.store(lse_ptr + (b * num_heads + h) * num_queries + query, lse)
