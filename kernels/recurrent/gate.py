"""Cumulative sums of decays within chunks, and queries and keys weighted by them (Triton)."""

# B batch, T tokens, C tokens per chunk, H value heads, K key width

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["tokens"])
def head_gate(decay_ptr, sum_ptr, tokens, heads, floor, C: tl.constexpr, BH: tl.constexpr):
    """Scalar decay, cumulative sums: G = log2(e) cumsum(max(g, floor)) over each chunk.

    A program takes one chunk of BH heads. Bytes per token and head: 8.
    """
    chunks = tl.cdiv(tokens, C)
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunks
    t = chunk % chunks * C + tl.arange(0, C)[:, None]
    h = tl.program_id(1) * BH + tl.arange(0, BH)[None, :]
    at = (b * tokens + t) * heads + h
    inside = (t < tokens) & (h < heads)
    g = tl.load(decay_ptr + at, mask=inside, other=0.0)
    tl.store(sum_ptr + at, tl.cumsum(tl.maximum(g, floor) * LOG2_E, 0), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def channel_gate(
    decay_ptr,
    q_ptr,
    k_ptr,
    e_ptr,
    b_ptr,
    sum_ptr,
    q_in_ptr,
    k_out_ptr,
    e_in_ptr,
    b_out_ptr,
    q_stride,
    k_stride,
    e_stride,
    b_stride,
    tokens,
    heads,
    floor,
    USE_DELTA_RULE: tl.constexpr,
    IS_RWKV7: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """Channel decay, cumulative sums G per channel, and the queries and keys weighted by them:

    q^ = q e^G and k_ = k e^{G_C - G}; for the delta rule also k^ = k e^G; for RWKV-7
    e^ = e e^{G - g} (the sum before the token) and b_ = b e^{G_C - G}. `fwd_state` and `bwd_state`
    read these, once per block of values.
    A program takes one chunk of BK channels of a head. Bytes per token and channel, b per element:
    8 + 4 b, delta rule 8 + 5 b, RWKV-7 8 + 8 b.
    """
    chunks = tl.cdiv(tokens, C)
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunks
    t = chunk % chunks * C + tl.arange(0, C)[:, None]
    h = tl.program_id(1)
    d = tl.program_id(2) * BK + tl.arange(0, BK)[None, :]
    inside = (t < tokens) & (d < K)
    row = b * tokens + t
    at = (row * heads + h) * K + d
    of_head = h * K + d
    dtype = q_in_ptr.dtype.element_ty

    g = tl.load(decay_ptr + at, mask=inside, other=0.0)
    g = tl.maximum(g, floor) * LOG2_E
    G = tl.cumsum(g, 0)
    to_end = tl.exp2(tl.min(G, 0, keep_dims=True) - G)
    tl.store(sum_ptr + at, G, mask=inside)
    q = tl.load(q_ptr + row * q_stride + of_head, mask=inside, other=0.0)
    k = tl.load(k_ptr + row * k_stride + of_head, mask=inside, other=0.0)
    tl.store(q_in_ptr + at, (q * tl.exp2(G)).to(dtype), mask=inside)
    tl.store(k_out_ptr + at, (k * to_end).to(dtype), mask=inside)
    if USE_DELTA_RULE:
        tl.store(e_in_ptr + at, (k * tl.exp2(G)).to(dtype), mask=inside)
    if IS_RWKV7:
        e = tl.load(e_ptr + row * e_stride + of_head, mask=inside, other=0.0)
        tl.store(e_in_ptr + at, (e * tl.exp2(G - g)).to(dtype), mask=inside)
        b_key = tl.load(b_ptr + row * b_stride + of_head, mask=inside, other=0.0)
        tl.store(b_out_ptr + at, (b_key * to_end).to(dtype), mask=inside)
