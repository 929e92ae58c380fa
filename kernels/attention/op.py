"""Public API of softmax attention: one function each, on any device.

    o, lse = attend(q, k, v, window=512)                 causal, in a sliding window
    o = attend_without_lse(q, k, v)                      the same where only o is wanted
    o, lse = attend_cached(q, cache)                     the newest tokens over a paged cache
    o, lse = attend_blocks(q, k, v, blocks, block=64)    selected blocks of keys per query
    o = with_sinks(o, lse, sinks)                        a learned sink per head, from lse alone

reference.py defines what they compute, gradients included; attend_cached has none in Triton.
backend="torch" runs eager.py, its equal, for any input. backend="triton" runs kernels, or raises
`requirements.Unsupported` before anything is launched. None chooses by device: "triton" for CUDA
tensors, "torch" for others.

lse, the logarithm of the sum of exponentials, is differentiable: attentions over different keys are
merged by weighting each o by exp(lse - logaddexp of all), without a kernel.

Packed sequences: `segment_ids` [B, T] int32, nondecreasing along T, or `cu_seqlens` [N + 1] of a
batch of one row (see segments.py). A query sees keys of its own segment only.
"""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width,
# N listed blocks per query, Q new tokens

import torch
from torch import Tensor
from torch.nn.functional import relu

from ..backend import Backend, choose_backend
from ..segments import resolve_segment_ids
from . import eager
from .cache import PagedCache


def attend(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over whole sequences, grouped-query, K and V independent.

    Triton runs FlashAttention-2 (arXiv 2307.08691).

    Args:
        q_BTHK: queries [B, T, H, K], float32, bfloat16 or float16.
        k_BTGK, v_BTGV: keys [B, T, G, K] and values [B, T, G, V] in q's dtype; G must divide H.
        causal: a query sees itself and the keys before it; False: all keys.
        window: of those only the last `window`, itself included; needs causal.
        scale: factor of q k^T; None is K ** -0.5.
        softcap: c of the score c * tanh(scale * q k^T / c) (Gemma 2, arXiv 2408.00118).
        segment_ids, cu_seqlens: boundaries of packed sequences, at most one of them.
        backend: "torch", "triton", or None to choose by device.

    Returns:
        o_BTHV [B, T, H, V] in q's dtype and lse_BHT [B, H, T], float32 (float64 beside float64).

    Raises:
        Unsupported: the kernels do not take these shapes, dtypes, strides or this GPU.
        ValueError: a window that is not causal or below 1; both segment_ids and cu_seqlens;
            cu_seqlens with B > 1.
    """
    _check_window(window, causal=causal)
    if choose_backend(backend, q_BTHK) == "torch":
        implementation = eager
    else:
        from . import dense as implementation
    return implementation.attend(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        causal=causal,
        window=window,
        scale=_scale(q_BTHK, scale),
        softcap=softcap,
        segment_ids=resolve_segment_ids(segment_ids, cu_seqlens, q_BTHK),
    )


def attend_without_lse(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """o_BTHV of `attend`, same arguments and errors; up to twice as fast on "torch"."""
    _check_window(window, causal=causal)
    options = {
        "causal": causal,
        "window": window,
        "scale": _scale(q_BTHK, scale),
        "softcap": softcap,
        "segment_ids": resolve_segment_ids(segment_ids, cu_seqlens, q_BTHK),
    }
    if choose_backend(backend, q_BTHK) == "torch":
        return eager.attend_without_lse(q_BTHK, k_BTGK, v_BTGV, **options)
    from . import dense

    return dense.attend(q_BTHK, k_BTGK, v_BTGV, **options)[0]


def attend_cached(
    q_BQHK: Tensor,
    cache: PagedCache,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest tokens over a paged cache, for decoding.

    Triton splits the keys over programs and combines their partial results (Flash-Decoding).

    Args:
        q_BQHK: queries [B, Q, H, K] of the last Q tokens that each row of the cache holds:
            `cache.append` their keys first.
        cache: keys and values, in floats, int8 or float8_e4m3fn; see cache.py.
        window, scale, softcap, backend: as in `attend`.

    Returns:
        o_BQHV [B, Q, H, V] in q's dtype and lse_BHQ [B, H, Q], float32.

    Raises:
        Unsupported: the kernels do not take these shapes, dtypes or this GPU (float8 needs sm_89).
        ValueError: a window below 1.
    """
    _check_window(window, causal=True)
    scale = _scale(q_BQHK, scale)
    if choose_backend(backend, q_BQHK) == "torch":
        return eager.attend_cached(q_BQHK, cache, window=window, scale=scale, softcap=softcap)
    from . import cached

    return cached.attend_cached(q_BQHK, cache, window, scale, softcap)


def attend_blocks(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    *,
    block: int,
    scale: float | None = None,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of each query over its own list of key blocks (MoBA, arXiv 2502.13189;
    NSA, arXiv 2502.11089).

    The query heads of one key/value head share a list: where each has its own, expand k and v to
    G = H. A kernel's tile holds the queries of one group, padded to 16: small groups waste it.

    Args:
        q_BTHK, k_BTGK, v_BTGV, scale, segment_ids, cu_seqlens, backend: as in `attend`.
        blocks_BGTN: int32 [B, G, T, N]; block i holds tokens i * block ... (i + 1) * block - 1.
            -1 lists none, a block is listed once, later ones than the query's own add nothing.
        block: keys per block; for "triton" a power of two >= 16.

    Returns:
        o_BTHV [B, T, H, V] in q's dtype and lse_BHT [B, H, T]; 0 and -inf for an empty list.

    Raises:
        Unsupported, ValueError: as `attend`.
    """
    if choose_backend(backend, q_BTHK) == "torch":
        implementation = eager
    else:
        from . import blocks as implementation
    return implementation.attend_blocks(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        blocks_BGTN,
        block=block,
        scale=_scale(q_BTHK, scale),
        segment_ids=resolve_segment_ids(segment_ids, cu_seqlens, q_BTHK),
    )


def attend_selected(
    q_BTHK: Tensor,
    k_BCK: Tensor,
    index_BTN: Tensor,
    *,
    v_dim: int,
    scale: float | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Multi-query softmax attention of each query over a list of keys; (o_BTHV, lse_BHT).

    The leading `v_dim` columns of a key are its value, as in absorbed MLA. `index_BTN`, int32,
    names keys of `k_BCK`, each at most once; entries below 0 name none, and a query without keys
    reads zeros. The list has no gradient. Raises Unsupported (Triton).
    """
    if choose_backend(backend, q_BTHK) == "torch":
        implementation = eager
    else:
        from . import selected as implementation
    return implementation.attend_selected(
        q_BTHK, k_BCK, index_BTN, v_dim=v_dim, scale=_scale(q_BTHK, scale)
    )


def index_scores(q_BTIK: Tensor, k_BCK: Tensor, weight_BTI: Tensor) -> Tensor:
    """Scores of an indexer: score_BTC = sum_i w_i relu(q_i k / sqrt(K)) / sqrt(I), in fp32.

    The lightning indexer of DeepSeek-V3.2-Exp (report, equation 1): one key per token, shared by
    all heads. Runs as PyTorch products on every device.
    """
    heads, width = q_BTIK.shape[2:]
    match_BITC = q_BTIK.transpose(1, 2).float() @ k_BCK[:, None].mT.float()
    weight_BIT1 = weight_BTI.float().transpose(1, 2)[..., None] * heads**-0.5
    return (relu(match_BITC * width**-0.5) * weight_BIT1).sum(1)


def with_sinks(o_BTHV: Tensor, lse_BHT: Tensor, sinks_H: Tensor) -> Tensor:
    """Attention sinks (gpt-oss): o_BTHV as with one more key per head, of score sinks_H, value 0.

    `o_BTHV` and `lse_BHT` are those of `attend`, `attend_cached` or `attend_blocks`.
    """
    fraction_BHT = torch.sigmoid(lse_BHT - sinks_H[:, None])
    return o_BTHV * fraction_BHT.transpose(1, 2)[..., None].to(o_BTHV.dtype)


def _scale(q_BTHK: Tensor, scale: float | None) -> float:
    return q_BTHK.shape[-1] ** -0.5 if scale is None else scale


def _check_window(window: int | None, *, causal: bool) -> None:
    if window is not None and not (causal and window >= 1):
        raise ValueError(f"a window must be causal and >= 1, got {window=}, {causal=}")
