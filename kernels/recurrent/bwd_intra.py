"""Gradients of the attention matrices within chunks, and of beta (Triton)."""

# B batch, T tokens, C tokens per chunk, H value heads, V value width

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl

from .tiles import within


@triton.jit(do_not_specialize=["tokens"])
def bwd_intra(
    do_ptr,
    Y_ptr,
    W_ptr,
    sum_ptr,
    beta_ptr,
    segment_ids_ptr,
    dA_ptr,
    dP_ptr,
    dbeta_ptr,
    W_stride,
    tokens,
    heads,
    scale,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_DELTA_RULE: tl.constexpr,
    IS_RWKV7: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
    C: tl.constexpr,
    BV: tl.constexpr,
):
    """Linear recurrence, backward within chunks: dA, dP and dbeta.

    dA = scale lower(dO W^T . D), and for the delta rule and RWKV-7 dP = -strictly lower(Y W^T . D).
    The delta rule passes U of `fwd_state` as W, without its factor beta, and
    dbeta = rowsum(Y U) / beta.
    D is that of `fwd_intra`; a decay per channel is weighted in `bwd_inputs`.
    A program takes one chunk of one head. FLOPs: 2 C^2 V, with dP 4 C^2 V. Bytes per token and
    head, b per element: 2 V b read and C b written, with dP 3 V b and 2 C b.
    """
    chunks = tl.cdiv(tokens, C)
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunks
    start = (chunk % chunks * C).to(tl.int32)
    h = tl.program_id(1)
    i = tl.arange(0, C)
    token = b * tokens + start
    head = token * heads + h
    in_sequence = start + i < tokens

    dA = tl.zeros([C, C], tl.float32)
    dP = tl.zeros([C, C], tl.float32)
    dbeta = tl.zeros([C], tl.float32)
    for e0 in range(0, V, BV):
        e = e0 + tl.arange(0, BV)
        inside = in_sequence[:, None] & (e[None, :] < V)
        at = i[:, None] * (heads * V) + e[None, :]
        do = tl.load(do_ptr + head * V + at, mask=inside, other=0.0)
        W = W_ptr + token * W_stride + h * V
        W = tl.load(W + i[:, None] * W_stride + e[None, :], mask=inside, other=0.0)
        dA = tl.dot(do, tl.trans(W), dA, input_precision=PRECISION)
        if USE_DELTA_RULE or IS_RWKV7:
            Y = tl.load(Y_ptr + head * V + at, mask=inside, other=0.0)
            dP = tl.dot(Y, tl.trans(W), dP, input_precision=PRECISION)
            if USE_DELTA_RULE:
                dbeta += tl.sum(Y.to(tl.float32) * W, 1)

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
    if USE_DELTA_RULE:
        beta = tl.load(beta_ptr + head + i * heads, mask=in_sequence, other=1.0)
        tl.store(dbeta_ptr + head + i * heads, dbeta / beta, mask=in_sequence)
        D *= beta[None, :]
    at = i[:, None] * (heads * C) + i[None, :]
    dtype = dA_ptr.dtype.element_ty
    tl.store(dA_ptr + head * C + at, (scale * dA * D).to(dtype), mask=in_sequence[:, None])
    if USE_DELTA_RULE or IS_RWKV7:
        dP = tl.where(i[:, None] > i[None, :], -dP * D, 0.0)
        tl.store(dP_ptr + head * C + at, dP.to(dtype), mask=in_sequence[:, None])
