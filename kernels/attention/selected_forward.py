"""Attention over a list of keys per query, forward, in Triton.

The specification is `attend_selected` in reference.py. All heads of a token share its list and the
one key head, whose leading columns are the value, so that a tile of keys is gathered once for both
products: multi-query attention over a latent, as DeepSeek-V3.2's sparse attention runs it.
"""

# B batch, T queries, C keys, H query heads, K key width, V value width, N listed keys per query

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .tiles import EXACT, LN_2, LOWEST, gather_rows, scatter_rows


@triton.jit(do_not_specialize=["num_heads", "num_listed"])
def selected_forward(
    q_ptr,
    k_ptr,
    index_ptr,
    o_ptr,
    lse_ptr,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    num_heads,
    num_listed,
    factor,
    K: tl.constexpr,
    K_REST: tl.constexpr,
    V: tl.constexpr,
    V_TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Output and log-sum-exp of M heads of one query over the keys of its list, N at a time.

    Bytes per program: K elements per listed key. FLOPs: 2 M (K + V) per listed key.
    """
    t = tl.program_id(0)
    h = tl.program_id(1) * M + tl.arange(0, M)
    b = tl.program_id(2).to(tl.int64)
    num_tokens = tl.num_programs(0)
    inside = h < num_heads
    q_ptr += b * q_batch + tl.cast(t, tl.int64) * q_token
    k_ptr += b * k_batch
    index_ptr += (b * num_tokens + t) * num_listed

    q = gather_rows(q_ptr, h * q_head, inside, V, V_TILE)
    if K_REST > 0:
        q_rest = gather_rows(q_ptr + V, h * q_head, inside, K - V, K_REST)
    m = tl.full([M], LOWEST, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, V_TILE], tl.float32)
    for first in range(0, num_listed, N):
        place = first + tl.arange(0, N)
        key = tl.load(index_ptr + place, mask=place < num_listed, other=-1)
        listed = key >= 0
        k = gather_rows(k_ptr, key.to(tl.int64) * k_token, listed, V, V_TILE)
        s = tl.dot(q, tl.trans(k), input_precision=EXACT)
        if K_REST > 0:
            k_rest = gather_rows(k_ptr + V, key.to(tl.int64) * k_token, listed, K - V, K_REST)
            s += tl.dot(q_rest, tl.trans(k_rest), input_precision=EXACT)
        s = tl.where(listed[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * factor)
        p = tl.exp2(s * factor - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        l = l * rescale + tl.sum(p, 1)
        acc = tl.dot(p.to(k.dtype), k, acc * rescale[:, None], input_precision=EXACT)
        m = m_new

    total = tl.where(l > 0.0, l, 1.0)
    lse = tl.where(l > 0.0, (m + tl.log2(total)) * LN_2, float("-inf"))
    o_ptr += (b * num_tokens + t) * num_heads * V
    scatter_rows(o_ptr, acc / total[:, None], h * V, inside, V, V_TILE)
    tl.store(lse_ptr + (b * num_heads + h) * num_tokens + t, lse, mask=inside)
