"""Attention matrix within each chunk, and the inverse of the delta rule (Triton)."""

# B batch, T tokens, C tokens per chunk, G key heads, H value heads, K key width

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl

from .tiles import channel_sums, decayed, level, unit_lower_inverse, within


@triton.jit(do_not_specialize=["tokens"])
def fwd_intra(
    q_ptr,
    e_ptr,
    k_ptr,
    sum_ptr,
    beta_ptr,
    segment_ids_ptr,
    A_ptr,
    P_ptr,
    q_stride,
    e_stride,
    k_stride,
    tokens,
    heads,
    scale,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_CHANNEL_DECAY: tl.constexpr,
    USE_DELTA_RULE: tl.constexpr,
    IS_RWKV7: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    INVERT: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    LEVELS: tl.constexpr,
    PRECISION: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """Linear recurrence, forward within chunks: attention matrix A, and P of the delta rule.

    A = scale lower(q k^T . D) and P = strictly lower(e k^T . D), e being k for the delta rule and
    -a for RWKV-7. With INVERT P is replaced by its unit lower inverse: (I + P beta)^{-1} for the
    delta rule, (I + P)^{-1} for RWKV-7 (the WY form of arXiv 2406.06484, section 3.2).
    D_ij = e^{G_i - G_j}, for RWKV-7's rows e e^{G_i - g_i - G_j}; a decay per channel is weighted
    inside the product (`level`).
    A program takes one chunk of one head. FLOPs: 2 C^2 K, twice that with P, 20 C^3 / 3 more to
    invert; with a decay per channel LEVELS times the products. Bytes per token and head, b per
    element: 2 K b, 4 per decay, and 2 C b written.
    """
    chunks = tl.cdiv(tokens, C)
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunks
    start = (chunk % chunks * C).to(tl.int32)
    h = tl.program_id(1)
    i = tl.arange(0, C)
    token = b * tokens + start
    in_sequence = start + i < tokens
    dtype = k_ptr.dtype.element_ty

    A = tl.zeros([C, C], tl.float32)
    P = tl.zeros([C, C], tl.float32)
    for d0 in range(0, K, BK):
        d = d0 + tl.arange(0, BK)
        inside = in_sequence[:, None] & (d[None, :] < K)
        of_head = h // R * K + d[None, :]
        q = q_ptr + token * q_stride + (i[:, None] * q_stride + of_head)
        k = k_ptr + token * k_stride + (i[:, None] * k_stride + of_head)
        q = tl.load(q, mask=inside, other=0.0)
        k = tl.load(k, mask=inside, other=0.0)
        if IS_RWKV7:
            e = e_ptr + token * e_stride + (i[:, None] * e_stride + of_head)
            e = tl.load(e, mask=inside, other=0.0)
        else:
            e = k
        if USE_CHANNEL_DECAY:
            in_head = (d < K)[None, :]
            sums = sum_ptr + (token * heads + h) * K + d[None, :]
            G = channel_sums(sums, i, tokens - start, heads * K, in_head)
            if IS_RWKV7:
                has_past = in_head & (i > 0)[:, None]
                G_e = channel_sums(sums, i - 1, tokens - start, heads * K, has_past)
            else:
                G_e = G
            for l in tl.range(LEVELS, disable_licm=True):
                at_border, rows, columns, pairs = level(l, C)
                border = channel_sums(sums, at_border, tokens - start, heads * K, in_head)
                q_row = (q * decayed(G - border, rows)).to(dtype)
                column = tl.trans((k * decayed(border - G, columns)).to(dtype))
                met = tl.dot(q_row, column, input_precision=PRECISION)
                A += tl.where(pairs, met, 0.0)
                if USE_DELTA_RULE or IS_RWKV7:
                    e_row = (e * decayed(G_e - border, rows)).to(dtype)
                    met = tl.dot(e_row, column, input_precision=PRECISION)
                    P += tl.where(pairs, met, 0.0)
        else:
            column = tl.trans(k)
            A = tl.dot(q, column, A, input_precision=PRECISION)
            if USE_DELTA_RULE or IS_RWKV7:
                P = tl.dot(e, column, P, input_precision=PRECISION)

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
    of_head = (token * heads + h) * C
    at = i[:, None] * (heads * C) + i[None, :]
    tl.store(A_ptr + of_head + at, (scale * A * D).to(dtype), mask=in_sequence[:, None])
    if USE_DELTA_RULE or IS_RWKV7:
        P = tl.where(i[:, None] > i[None, :], P * D, 0.0)
        if USE_DELTA_RULE:
            beta = beta_ptr + token * heads + h + i * heads
            P *= tl.load(beta, mask=in_sequence, other=0.0)[None, :]
        if INVERT:
            P = unit_lower_inverse(P, C, PRECISION)
        tl.store(P_ptr + of_head + at, P.to(dtype), mask=in_sequence[:, None])
