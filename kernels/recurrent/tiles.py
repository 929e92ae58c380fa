"""What the chunk kernels share on the device: decays between the tokens of a chunk, and an inverse.

Sums of decays, G, are exponents of two, from the start of each chunk, each token included; a token
past the end of the sequence has the last one's sum. Exponents are formed as differences and hidden
before `exp2`: e^{-G} alone overflows, and so does the decay from a later token to an earlier one.
DECAY is 0 without decay, 1 with one for a head, 2 with one for each of its channels.
"""

# C tokens of a chunk, K channels of a tile

# Triton takes an annotation on a kernel's argument for its type at run time; a constexpr that picks
# branches, and a range that is for the device, mean nothing outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def head_sums(sum_ptr, b, h, start, tokens, heads, USE_SCALAR_DECAY: tl.constexpr, C: tl.constexpr):
    """(G_C, G of the chunk's last token) of one head; zeros where it has no decay of its own."""
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
    """(from_start_C, to_end_C, through): what token i sees of the state before the chunk, what the
    state after it keeps of token i's write, and of the state before.

    With a decay for each channel only the documents speak: 0 or 1.
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
    """D_CC: what token i sees of token j's write, 0 for a later j; or its transpose.

    With a decay for each channel only the documents speak: 0 or 1.
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
def channel_sums(sum_ptr, at, left, stride, inside):
    """G_CK of the tokens `at` of a chunk; `sum_ptr` points to the channels of its first token, and
    `left` tokens are left of the sequence from there.
    """
    return tl.load(sum_ptr + tl.minimum(at, left - 1)[:, None] * stride, mask=inside, other=0.0)


@triton.jit
def level(l, C: tl.constexpr):
    """How the pairs j <= i of a chunk factor where each channel has a decay of its own.

    With R the sum at a border between them, e^{G_i - G_j} = e^{G_i - R} e^{R - G_j}. Level l has the
    pairs that one block of 8 2^l tokens holds and no proxy_fields one, i in its second half and j in its
    first, the border between the halves: no exponent is above 0. Level 0 has all pairs of a block,
    with exponents of four steps at most.

    (border_C of each token, rows_C1 that a pair may have, columns_C1, pairs_CC).
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
    return tl.exp2(tl.where(where, exponent, float("-inf")))


@triton.jit
def unit_lower_inverse(A, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I + A)^{-1} of a strictly lower A, by inverting blocks of twice the size again and again.

    From X, the inverse of the diagonal blocks, that of the next: X - X L X, where L holds A in their
    lower left quarters. As exact as forward substitution, without its chain of rows.
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
