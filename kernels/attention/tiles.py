"""Device functions of the attention kernels: loading rows, mask intervals, the soft cap.

The mask is an interval on both sides: a query sees the keys from the start of its segment or window
to itself or the end of its segment; a key is seen by the queries from itself or the start of its
segment to the end of its segment or window. Both ends grow with the token, so a tile of rows needs
a mask only on the first and last tiles of its loop, which has three phases: 0 masked, 1 full, 2
masked.
"""

# Triton reads an annotation on a kernel's argument as its type at run time; a constexpr that picks
# branches, and a range or a sum that is for the device, are not valid outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)  # initial maximum: finite, so that a row without keys gives no NaN
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
EXACT = tl.constexpr("tf32x3")  # float32 operands of tl.dot; 16-bit ones are exact in any case


@triton.jit
def load_rows(
    ptr,
    first,
    stride,
    num_rows,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """Rows `first` .. `first` + ROWS as [ROWS, COLS]; zero past WIDTH and, if CHECKED, num_rows.

    One 64-bit offset serves the whole tile: one for each row costs the registers of a dot.
    """
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    at = ptr + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + col[None, :])
    if CHECKED or COLS > WIDTH:
        inside = (first + row < num_rows)[:, None] & (col < WIDTH)[None, :]
        return tl.load(at, mask=inside, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def store_rows(
    ptr,
    x,
    first,
    stride,
    num_rows,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Store x [ROWS, COLS] as the rows from `first` on; not past WIDTH and num_rows."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    at = ptr + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + col[None, :])
    inside = (first + row < num_rows)[:, None] & (col < WIDTH)[None, :]
    tl.store(at, x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def gather_rows(ptr, offset, inside, WIDTH: tl.constexpr, COLS: tl.constexpr):
    """The rows that begin at elements `offset`, as [rows, COLS]; zero past WIDTH and outside."""
    col = tl.arange(0, COLS)
    mask = inside[:, None] & (col < WIDTH)[None, :]
    return tl.load(ptr + offset[:, None] + col[None, :], mask=mask, other=0.0)


@triton.jit
def scatter_rows(ptr, x, offset, inside, WIDTH: tl.constexpr, COLS: tl.constexpr):
    """Store x as the rows that begin at elements `offset`; not past WIDTH and outside."""
    col = tl.arange(0, COLS)
    mask = inside[:, None] & (col < WIDTH)[None, :]
    tl.store(ptr + offset[:, None] + col[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def keys_seen(
    query,
    start_ptr,
    end_ptr,
    num_tokens,
    window,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
):
    """(first, last) key that each query sees; rows past the last query repeat it."""
    query = tl.minimum(query, num_tokens - 1)
    first = query * 0
    last = query if CAUSAL else first + num_tokens - 1
    if WINDOW:
        first = tl.maximum(query - window + 1, 0)
    if USE_SEGMENT_IDS:
        first = tl.maximum(first, tl.load(start_ptr + query))
        if not CAUSAL:
            last = tl.load(end_ptr + query) - 1
    return first, last


@triton.jit
def queries_seeing(
    key,
    start_ptr,
    end_ptr,
    num_tokens,
    window,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    M: tl.constexpr,
):
    """(first, last) query that sees each key; rows past the last key repeat it.

    The last tile of M queries is taken whole: rows past the end are zero and add nothing.
    """
    key = tl.minimum(key, num_tokens - 1)
    first = key if CAUSAL else key * 0
    last = key * 0 + tl.cdiv(num_tokens, M) * M - 1
    if WINDOW:
        last = tl.minimum(last, key + window - 1)
    if USE_SEGMENT_IDS:
        last = tl.minimum(last, tl.load(end_ptr + key) - 1)
        if not CAUSAL:
            first = tl.load(start_ptr + key)
    return first, last


@triton.jit
def span(first, last, PHASE: tl.constexpr, SIZE: tl.constexpr):
    """(begin, end) of a phase in tiles of SIZE, from the intervals of a tile's rows."""
    end = tl.max(last, 0) + 1
    full_begin = tl.minimum(tl.cdiv(tl.max(first, 0), SIZE), tl.cdiv(end, SIZE)) * SIZE
    full_end = tl.maximum((tl.min(last, 0) + 1) // SIZE * SIZE, full_begin)
    if PHASE == 0:
        return tl.min(first, 0) // SIZE * SIZE, full_begin
    elif PHASE == 1:
        return full_begin, full_end
    else:
        return full_end, end


@triton.jit
def tanh(x):
    """tanh(x / (2 log2(e))): the constant is folded into the caller's softcap_scale."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(x))
