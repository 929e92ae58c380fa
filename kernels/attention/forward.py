"""Flash attention, forward (Triton)."""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .tiles import EXACT, LN_2, LOWEST, keys_seen, load_rows, span, store_rows, tanh


@triton.jit(do_not_specialize=["num_tokens", "window"])
def forward(
    q_ptr,
    k_ptr,
    v_ptr,
    start_ptr,
    end_ptr,
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
    num_tokens,
    group,
    window,
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
    """Flash attention, forward: o = softmax(s) v and lse = log(sum(exp(s))), s = scale * q k^T.

    A program takes M queries of a head and loops over their keys in tiles of N, with the online
    softmax of FlashAttention-2 (arXiv 2307.08691) in base 2; `softcap_scale` and `factor` are those
    of arguments.score_arguments.
    FLOPs: 2 (K + V) per query, head and key seen.
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
    if K_REST > 0:
        q_rest = load_rows(q_ptr + K_MAIN, top, q_token, num_tokens, K - K_MAIN, M, K_REST, True)
    m = tl.full([M], LOWEST, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, V_TILE], tl.float32)
    for phase in tl.static_range(0 if WINDOW or USE_SEGMENT_IDS else 1, 3):
        begin, end = span(first, last, phase, N)
        for at in range(begin, end, N):
            k = load_rows(k_ptr, at, k_token, num_tokens, K, N, K_MAIN, phase != 1)
            s = tl.dot(q, tl.trans(k), input_precision=EXACT)
            if K_REST > 0:
                k = load_rows(
                    k_ptr + K_MAIN, at, k_token, num_tokens, K - K_MAIN, N, K_REST, phase != 1
                )
                s += tl.dot(q_rest, tl.trans(k), input_precision=EXACT)
            if SOFTCAP:
                s = tanh(s * softcap_scale)
            if phase != 1:
                key = at + tl.arange(0, N)
                visible = (key[None, :] >= first[:, None]) & (key[None, :] <= last[:, None])
                s = tl.where(visible, s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * factor)
            p = tl.exp2(s * factor - m_new[:, None])
            rescale = tl.exp2(m - m_new)
            l = l * rescale + tl.sum(p, 1)
            v = load_rows(v_ptr, at, v_token, num_tokens, V, N, V_TILE, phase != 1)
            acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=EXACT)
            m = m_new

    total = tl.where(l > 0.0, l, 1.0)
    o = acc / total[:, None]
    o_ptr += (b * num_tokens * num_heads + h) * V
    store_rows(o_ptr, o, top, num_heads * V, num_tokens, V, M, V_TILE)
    lse = tl.where(l > 0.0, (m + tl.log2(total)) * LN_2, float("-inf"))
    lse_ptr += (b * num_heads + h) * num_tokens
    tl.store(lse_ptr + query, lse, mask=query < num_tokens)
