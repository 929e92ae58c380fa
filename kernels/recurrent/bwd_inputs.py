"""Gradients of queries, keys and decays, all chunks in parallel (Triton)."""

# B batch, T tokens, N chunks, C tokens per chunk, G key heads, H value heads, K key width,
# V value width, R = H / G value heads of a key head

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl

from .tiles import channel_sums, decayed, edges, level


@triton.jit(do_not_specialize=["tokens"])
def bwd_inputs(
    q_ptr,
    e_ptr,
    k_ptr,
    W_ptr,
    do_ptr,
    Y_ptr,
    decay_ptr,
    sum_ptr,
    beta_ptr,
    segment_ids_ptr,
    S_ptr,
    dS_ptr,
    dA_ptr,
    dP_ptr,
    dq_ptr,
    de_ptr,
    dk_ptr,
    ddecay_ptr,
    q_stride,
    e_stride,
    k_stride,
    W_stride,
    tokens,
    heads,
    scale,
    floor,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_CHANNEL_DECAY: tl.constexpr,
    USE_DELTA_RULE: tl.constexpr,
    IS_RWKV7: tl.constexpr,
    SECOND: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    PRECISION: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Linear recurrence, backward of the inputs: dq, dk, de and the decays' gradient dg.

    From dA and dP of `bwd_intra`, dO, Y, and the states S before and dS after each chunk:

    dq = scale e^G dO S^T + dA k        de = -e^G Y S^T + dP k
    dk = e^{G_C - G} W dS^T + dA^T q + dP^T e       dG = q dq + e de - k dk
    dg_t = the sum of dG_i over i >= t of the chunk, and <S, dS> at its end

    For the delta rule e is k, and dk is the sum of both. For RWKV-7 e is weighted by the sum before
    its token, in de and in dg. A SECOND launch takes RWKV-7's b and U for k and W: it adds to dq,
    de and dg of the first, without the terms of the state that are counted there.
    The diagonal of A cancels in dG but for rounding, and is left out there.
    A program takes one chunk, BK channels and HEADS value heads of one key head.
    FLOPs per chunk and head: 4 C^2 K + 4 C K V, with dP 8 C^2 K + 6 C K V.
    """
    chunks = tl.cdiv(tokens, C)
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunks
    start = (chunk % chunks * C).to(tl.int32)
    group = tl.program_id(1)
    groups = heads // HEADS
    i = tl.arange(0, C)
    d = tl.program_id(2) * BK + tl.arange(0, BK)
    token = b * tokens + start
    in_sequence = start + i < tokens
    in_head = (d < K)[None, :]
    in_keys = in_sequence[:, None] & in_head
    part = (token * groups + group) * K
    at_part = i[:, None] * (groups * K) + d[None, :]
    dtype = do_ptr.dtype.element_ty

    of_head = group * HEADS // R * K + d[None, :]
    q = q_ptr + token * q_stride + (i[:, None] * q_stride + of_head)
    k = k_ptr + token * k_stride + (i[:, None] * k_stride + of_head)
    q = tl.load(q, mask=in_keys, other=0.0)
    k = tl.load(k, mask=in_keys, other=0.0)
    if IS_RWKV7:
        e = e_ptr + token * e_stride + (i[:, None] * e_stride + of_head)
        e = tl.load(e, mask=in_keys, other=0.0)
    else:
        e = k
    dq_all = tl.zeros([C, BK], tl.float32)
    de_all = tl.zeros([C, BK], tl.float32)
    dk_all = tl.zeros([C, BK], tl.float32)
    if SECOND:
        dq_all += tl.load(dq_ptr + part + at_part, mask=in_keys, other=0.0)
        de_all += tl.load(de_ptr + part + at_part, mask=in_keys, other=0.0)
    for r in tl.range(HEADS, disable_licm=True):
        h = group * HEADS + r
        head = token * heads + h
        state = (chunk * heads + h) * K * V
        dq = tl.zeros([C, BK], tl.float32)
        de = tl.zeros([C, BK], tl.float32)
        dk = tl.zeros([C, BK], tl.float32)
        last = tl.zeros([1, BK], tl.float32)  # a row: triton 3.6 fails to reduce a reduced tensor
        for f0 in range(0, V, BV):
            f = f0 + tl.arange(0, BV)
            in_values = in_sequence[:, None] & (f[None, :] < V)
            in_state = (d[:, None] < K) & (f[None, :] < V)
            at = i[:, None] * (heads * V) + f[None, :]
            at_state = d[:, None] * V + f[None, :]
            dS = tl.load(dS_ptr + state + at_state, mask=in_state, other=0.0)
            W = W_ptr + token * W_stride + h * V
            W = tl.load(W + i[:, None] * W_stride + f[None, :], mask=in_values, other=0.0)
            dk = tl.dot(W, tl.trans(dS), dk, input_precision=PRECISION)
            if not SECOND:
                S = tl.load(S_ptr + state + at_state, mask=in_state, other=0.0)
                do = tl.load(do_ptr + head * V + at, mask=in_values, other=0.0)
                last += tl.sum(S.to(tl.float32) * dS, 1)[None, :]
                dq = tl.dot(do, tl.trans(S), dq, input_precision=PRECISION)
                if USE_DELTA_RULE or IS_RWKV7:
                    Y = tl.load(Y_ptr + head * V + at, mask=in_values, other=0.0)
                    de = tl.dot(Y, tl.trans(S), de, input_precision=PRECISION)

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
        if USE_DELTA_RULE:
            to_end *= tl.load(beta_ptr + head + i * heads, mask=in_sequence, other=0.0)
        q_weight = scale * from_start[:, None]
        e_weight = -from_start[:, None]
        k_weight = to_end[:, None]
        last *= through
        if USE_CHANNEL_DECAY:
            sums = sum_ptr + (token * heads + h) * K + d[None, :]
            G = channel_sums(sums, i, tokens - start, heads * K, in_head)
            if IS_RWKV7:
                has_past = in_head & (i > 0)[:, None]
                G_e = channel_sums(sums, i - 1, tokens - start, heads * K, has_past)
            else:
                G_e = G
            G_last = tl.min(G, 0, keep_dims=True)
            q_weight *= tl.exp2(G)
            e_weight *= tl.exp2(G_e)
            k_weight *= tl.exp2(G_last - G)
            last *= tl.exp2(G_last)
        dq *= q_weight
        de *= e_weight
        dk *= k_weight
        last += tl.sum(k * dk, 0, keep_dims=True)

        at_pairs = i[:, None] * (heads * C) + i[None, :]
        dA = tl.load(dA_ptr + head * C + at_pairs, mask=in_sequence[:, None], other=0.0)
        if USE_DELTA_RULE or IS_RWKV7:
            dP = tl.load(dP_ptr + head * C + at_pairs, mask=in_sequence[:, None], other=0.0)
        if USE_CHANNEL_DECAY:
            own = tl.where(i[:, None] == i[None, :], dA, 0.0).to(tl.float32)
            own = tl.sum(own, 1)[:, None]
            dq_all += own * k
            dk_all += own * q
            for l in tl.range(LEVELS, disable_licm=True):
                at_border, rows, columns, pairs = level(l, C)
                pairs &= i[:, None] > i[None, :]
                border = channel_sums(sums, at_border, tokens - start, heads * K, in_head)
                row = decayed(G - border, rows)
                column = decayed(border - G, columns)
                k_column = (k * column).to(dtype)
                dA_level = tl.where(pairs, dA, 0.0)
                dq += row * tl.dot(dA_level, k_column, input_precision=PRECISION)
                met = tl.dot(tl.trans(dA_level), (q * row).to(dtype), input_precision=PRECISION)
                if USE_DELTA_RULE or IS_RWKV7:
                    row = decayed(G_e - border, rows)
                    dP_level = tl.where(pairs, dP, 0.0)
                    de += row * tl.dot(dP_level, k_column, input_precision=PRECISION)
                    e_row = (e * row).to(dtype)
                    met = tl.dot(tl.trans(dP_level), e_row, met, input_precision=PRECISION)
                dk += column * met
        else:
            dq = tl.dot(dA, k, dq, input_precision=PRECISION)
            dk = tl.dot(tl.trans(dA), q, dk, input_precision=PRECISION)
            if USE_DELTA_RULE or IS_RWKV7:
                de = tl.dot(dP, k, de, input_precision=PRECISION)
                dk = tl.dot(tl.trans(dP), e, dk, input_precision=PRECISION)

        dG = q * dq + e * de - k * dk
        if USE_CHANNEL_DECAY:
            at = i[:, None] * (heads * K) + d[None, :]
            dg = tl.cumsum(dG, 0, reverse=True) + last
            if IS_RWKV7:
                dg -= e * de
            g = tl.load(decay_ptr + head * K + at, mask=in_keys, other=0.0)
            dg = tl.where(g < floor, 0.0, dg)
            if SECOND:
                dg += tl.load(ddecay_ptr + head * K + at, mask=in_keys, other=0.0)
            tl.store(ddecay_ptr + head * K + at, dg, mask=in_keys)
        if USE_SCALAR_DECAY:
            dg = tl.cumsum(tl.sum(dG, 1), 0, reverse=True) + tl.sum(last, 1)
            g = tl.load(decay_ptr + head + i * heads, mask=in_sequence, other=0.0)
            rows_before = tl.num_programs(0).to(tl.int64) // chunks * tokens * tl.program_id(2)
            at = ddecay_ptr + rows_before * heads + head + i * heads
            tl.store(at, tl.where(g < floor, 0.0, dg), mask=in_sequence)
        dq_all += dq
        de_all += de
        dk_all += dk

    if USE_DELTA_RULE:
        dk_all += de_all
    if IS_RWKV7:
        tl.store(de_ptr + part + at_part, de_all.to(de_ptr.dtype.element_ty), mask=in_keys)
    tl.store(dq_ptr + part + at_part, dq_all.to(dq_ptr.dtype.element_ty), mask=in_keys)
    tl.store(dk_ptr + part + at_part, dk_all.to(dk_ptr.dtype.element_ty), mask=in_keys)
