"""Device functions of the chunk kernels: decays between the tokens of a chunk, and an inverse.

G, the cumulative sum of decays from the start of each chunk, own token included, is kept as an
exponent of two; a token past the end of the sequence has the last one's sum. Exponents are formed
as differences and masked before `exp2`: e^{-G} alone overflows, and so does the decay from a later
token to an earlier one.
USE_SCALAR_DECAY: one decay per head and token. USE_CHANNEL_DECAY: one per channel of the key too.
USE_DELTA_RULE: writes are corrected by what the state holds, with beta. IS_RWKV7: a correction and
a write with keys of their own. At most one of each pair is set.
"""

# C tokens per chunk, K channels per tile

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def head_sums(sum_ptr, b, h, start, tokens, heads, USE_SCALAR_DECAY: tl.constexpr, C: tl.constexpr):
    """(G_C, G of the chunk's last token) of one head; zeros without USE_SCALAR_DECAY."""
    if USE_SCALAR_DECAY:
        of_chunk = sum_ptr + (b * tokens + start) * heads + h
        last = tl.minimum(C, tokens - start) - 1
        G = tl.load(of_chunk + tl.minimum(tl.arange(0, C), last) * heads)
        G_last = tl.load(of_chunk + last * heads)
    else:
        G = tl.zeros([C], tl.float32)
        G_last = tl.zeros([], tl.float32)
    return G, G_last


@triton.jit
def edges(
    sum_ptr,
    segment_ids_ptr,
    b,
    h,
    start,
    tokens,
    heads,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    C: tl.constexpr,
):
    """(from_start_C, to_end_C, through): decays from the chunk's start to token i, from token i to
    the chunk's end, and over the whole chunk; 0 across a segment boundary.

    Without USE_SCALAR_DECAY they are the segment masks alone, 0 or 1.
    """
    G, G_last = head_sums(sum_ptr, b, h, start, tokens, heads, USE_SCALAR_DECAY, C)
    from_start, to_end, through = tl.exp2(G), tl.exp2(G_last - G), tl.exp2(G_last)
    if USE_SEGMENT_IDS:
        row = segment_ids_ptr + b * tokens
        own = tl.load(row + tl.minimum(start + tl.arange(0, C), tokens - 1))
        before = tl.load(row + tl.maximum(start - 1, 0))
        last = tl.load(row + tl.minimum(start + C, tokens) - 1)
        from_start = tl.where(own == before, from_start, 0.0)
        to_end = tl.where(own == last, to_end, 0.0)
        through = tl.where(before == last, through, 0.0)
    return from_start, to_end, through


@triton.jit
def within(
    sum_ptr,
    segment_ids_ptr,
    b,
    h,
    start,
    tokens,
    heads,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    C: tl.constexpr,
):
    """D_CC: the decay from token j to token i, 0 for j > i or another segment; or its transpose.

    Without USE_SCALAR_DECAY it is the mask alone, 0 or 1.
    """
    i = tl.arange(0, C)
    G, _ = head_sums(sum_ptr, b, h, start, tokens, heads, USE_SCALAR_DECAY, C)
    if TRANSPOSED:
        seen = i[:, None] <= i[None, :]
        gap = G[None, :] - G[:, None]
    else:
        seen = i[:, None] >= i[None, :]
        gap = G[:, None] - G[None, :]
    if USE_SEGMENT_IDS:
        own = tl.load(segment_ids_ptr + b * tokens + tl.minimum(start + i, tokens - 1))
        seen &= own[:, None] == own[None, :]
    return tl.exp2(tl.where(seen, gap, float("-inf")))


@triton.jit
def channel_sums(sum_ptr, at, remaining, stride, inside):
    """G_CK of the tokens `at` of a chunk. `sum_ptr` points to the channels of its first token, from
    where `remaining` tokens are in the sequence.
    """
    return tl.load(
        sum_ptr + tl.minimum(at, remaining - 1)[:, None] * stride, mask=inside, other=0.0
    )


@triton.jit
def level(l, C: tl.constexpr):
    """One level of the hierarchical split of the pairs j <= i of a chunk, for decays per channel.

    With R the sum at a border between j and i, e^{G_i - G_j} = e^{G_i - R} e^{R - G_j}: a product
    of matrices. Level l has the pairs within a block of 8 2^l tokens that no smaller block holds, i
    in its second half and j in its first, R between the halves: no exponent is positive. Level 0
    has all pairs of a block of 8, R in its middle: exponents of four steps at most, which
    configs.MIN_LOG_DECAY_PER_CHANNEL bounds. Secondary chunking as in GLA (arXiv 2312.06635,
    section 4.3), with halves in place of subchunks.

    Returns (border_C of each token, rows_C1, columns_C1 and pairs_CC that belong to the level).
    """
    i = tl.arange(0, C)
    block = i >> (l + 3)
    half = 4 << l
    border = (block << (l + 3)) + half - 1
    rows = ((i & half) != 0) | (l == 0)
    columns = ((i & half) == 0) | (l == 0)
    pairs = (block[:, None] == block[None, :]) & rows[:, None] & columns[None, :]
    return border, rows[:, None], columns[:, None], pairs & (i[:, None] >= i[None, :])


@triton.jit
def decayed(exponent, where):
    """2^exponent, and 0 outside of `where`, without overflow there."""
    return tl.exp2(tl.where(where, exponent, float("-inf")))


@triton.jit
def unit_lower_inverse(A, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I + A)^{-1} of a strictly lower triangular A, by block inversion with doubling block size.

    If X inverts the diagonal blocks, X - X L X inverts those of twice the size, L being A in their
    lower left quarters. As exact as forward substitution, without its chain of dependent rows.
    """
    i = tl.arange(0, C)
    X = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for l in tl.static_range(0, 6):
        if (1 << l) < C:
            joined = (i[:, None] >> (l + 1)) == (i[None, :] >> (l + 1))
            L = tl.where(joined & ((i[:, None] >> l) > (i[None, :] >> l)), A, 0.0)
            if l == 0:
                X -= L
            else:
                XL = tl.dot(L, X, input_precision=PRECISION)
                X -= tl.dot(X, XL, input_precision=PRECISION)
    return X
