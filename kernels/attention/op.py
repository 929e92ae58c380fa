"""The door to softmax attention: one function each, whatever the device.

    o, lse = attend(q, k, v, window=512)            a sequence, causal, in a sliding window
    o = attend_without_lse(q, k, v)                 the same where only o is wanted
    o, lse = attend_cached(q, cache)                the newest tokens over a paged cache
    o, lse = attend_blocks(q, k, v, blocks, block=64)    each token over its own blocks of keys
    o = with_sinks(o, lse, sinks)                   a sink for each head, from lse alone

What they compute stands in reference.py, gradients included; attend_cached has none in Triton.
backend="torch" runs the torch form in eager.py, which is equal to it, for any input.
backend="triton" runs a kernel or raises `Unsupported` (../requirements.py) before it launches anything.
None picks by device: triton for CUDA tensors, torch for all others.

lse, the logarithm of the sum of exponentials, is differentiable. So a caller may merge attentions
over different keys, weighting each o by exp(lse - logaddexp of all), and needs no kernel for it.
"""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width,
# N blocks in a token's list, Q new tokens

import torch
from torch import Tensor

from ..backend import Backend, chosen
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
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT). `segment_ids` [B, T], int32, never falls along T; a chunk is a document."""
    _check_window(window, causal=causal)
    if chosen(backend, q_BTHK) == "torch":
        form = eager
    else:
        from . import dense as form
    return form.attend(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        causal=causal,
        window=window,
        scale=_scale(q_BTHK, scale),
        softcap=softcap,
        segment_ids=segment_ids,
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
    backend: Backend | None = None,
) -> Tensor:
    """o_BTHV of `attend`; its torch form is up to twice as fast for want of the other."""
    _check_window(window, causal=causal)
    rule = {
        "causal": causal,
        "window": window,
        "scale": _scale(q_BTHK, scale),
        "softcap": softcap,
        "segment_ids": segment_ids,
    }
    if chosen(backend, q_BTHK) == "torch":
        return eager.attend_without_lse(q_BTHK, k_BTGK, v_BTGV, **rule)
    from . import dense

    return dense.attend(q_BTHK, k_BTGK, v_BTGV, **rule)[0]


def attend_cached(
    q_BQHK: Tensor,
    cache: PagedCache,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BQHV, lse_BHQ) of the last Q tokens that each row of the cache holds: append first."""
    _check_window(window, causal=True)
    scale = _scale(q_BQHK, scale)
    if chosen(backend, q_BQHK) == "torch":
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
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_BTHV, lse_BHT). A list, int32, names a block once; those behind the token add nothing.

    The heads of one key/value head share a list: where each has its own, expand k and v to G = H.
    The kernel's tile of queries is that group, padded to 16: small groups waste tensor cores.
    """
    if chosen(backend, q_BTHK) == "torch":
        form = eager
    else:
        from . import blocks as form
    return form.attend_blocks(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        blocks_BGTN,
        block=block,
        scale=_scale(q_BTHK, scale),
        segment_ids=segment_ids,
    )


def with_sinks(o_BTHV: Tensor, lse_BHT: Tensor, sinks_H: Tensor) -> Tensor:
    """o as if each head had one more key, of score `sinks_H` and without a value (gpt-oss)."""
    kept_BHT = torch.sigmoid(lse_BHT - sinks_H[:, None])
    return o_BTHV * kept_BHT.transpose(1, 2)[..., None].to(o_BTHV.dtype)


def _scale(q_BTHK: Tensor, scale: float | None) -> float:
    return q_BTHK.shape[-1] ** -0.5 if scale is None else scale


def _check_window(window: int | None, *, causal: bool) -> None:
    if window is not None and not (causal and window >= 1):
        raise ValueError(f"a window must be causal and >= 1, got {window=}, {causal=}")
