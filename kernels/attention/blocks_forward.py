"""Block-sparse attention, forward (Triton).

Reference: `attend_blocks` in reference.py. A list belongs to one token and one key/value head,
so the tile of queries is the group of heads that share it, padded to 16 rows for the tensor cores:
a group of 16 heads fills its tile, a single head wastes fifteen sixteenths.
"""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width,
# N blocks per token

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .tiles import EXACT, LN_2, LOWEST, gather_rows, scatter_rows


@triton.jit(do_not_specialize=["num_listed"])
def blocks_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    blocks_ptr,
    start_ptr,
    o_ptr,
    lse_ptr,
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
    """Block-sparse attention, forward: o and lse of one token and one group of heads.

    A program loops over its listed blocks in tiles of N keys.

    Bytes per program, b per element: b (K + V) for each key listed.
    FLOPs: 2 M (K + V) for each key listed, padding included.
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
    if K_REST > 0:
        q_rest = gather_rows(q_ptr + K_MAIN, h * q_head, inside, K - K_MAIN, K_REST)
    m = tl.full([M], LOWEST, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, V_TILE], tl.float32)
    for step in range(num_listed * (BLOCK // N)):
        block = tl.load(blocks_ptr + step // (BLOCK // N))
        key = block * BLOCK + step % (BLOCK // N) * N + tl.arange(0, N)
        visible = (key >= first) & (key <= t)  # block -1 ends before the first token
        k = gather_rows(k_ptr, key.to(tl.int64) * k_token, visible, K, K_MAIN)
        s = tl.dot(q, tl.trans(k), input_precision=EXACT)
        if K_REST > 0:
            k = gather_rows(k_ptr + K_MAIN, key.to(tl.int64) * k_token, visible, K - K_MAIN, K_REST)
            s += tl.dot(q_rest, tl.trans(k), input_precision=EXACT)
        s = tl.where(visible[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * factor)
        p = tl.exp2(s * factor - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        l = l * rescale + tl.sum(p, 1)
        v = gather_rows(v_ptr, key.to(tl.int64) * v_token, visible, V, V_TILE)
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=EXACT)
        m = m_new

    total = tl.where(l > 0.0, l, 1.0)
    o = acc / total[:, None]
    lse = tl.where(l > 0.0, (m + tl.log2(total)) * LN_2, float("-inf"))
    o_ptr += (b * num_tokens + t) * num_heads * V
    scatter_rows(o_ptr, o, h * V, inside, V, V_TILE)
    tl.store(lse_ptr + (b * num_heads + h) * num_tokens + t, lse, mask=inside)
