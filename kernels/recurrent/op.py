"""The door to the recurrences: one function each, whatever the device.

    o, state = linear_recurrence(q, k, v, decay, beta, state)            a state K x V a head, over whole sequences
    o, state = rwkv7_recurrence(r, w, k, v, a, b, state)           the same with RWKV-7's two writes
    o = linear_recurrence_step(q, k, v, decay, beta, state)                  one token; renews the state where it lies
    o = rwkv7_recurrence_step(r, w, k, v, a, b, state)
    h, state = channel_scan(x, decay, state)               one number a channel
    y, state = selective_scan(x, dt, A, B, C, D, state)     Mamba-1

What they compute stands in reference.py. backend="torch" runs eager.py, which is equal to it, or
for one token the reference itself. backend="triton" runs kernels or raises `Unsupported`
(../requirements.py) before it launches anything. None picks by device: triton for CUDA tensors, torch for
all others. All but the steps have gradients, also through the state that is given and returned.

Results come in the dtype of v (or x), states in float32, or float64 beside float64 values; a state
that is left out is zero. `segment_ids` [B, T] numbers the document of each token, int32,
nondecreasing along a row: a document finds an empty state, only the first of a row the given one.
`chunk`, a power of two, is how many tokens are taken at once; it does not change what is meant.
Decays may be as strong as they like: one of a head counts as e^-64 at least, one of a channel as
e^-20, which is less than float32 can tell.
"""

from torch import Tensor

from ..backend import Backend, chosen
from . import eager, reference


def linear_recurrence(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    *,
    scale: float = 1.0,
    chunk: int = 64,
    segment_ids: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    options = {"scale": scale, "chunk": chunk, "segment_ids": segment_ids}
    if chosen(backend, v_BTHV) == "torch":
        return eager.linear_recurrence(q_BTGK, k_BTGK, v_BTHV, decay, beta, state_BHKV, **options)
    from . import chunks

    return chunks.linear_recurrence(q_BTGK, k_BTGK, v_BTHV, decay, beta, state_BHKV, **options)


def rwkv7_recurrence(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    *,
    chunk: int = 64,
    segment_ids: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    inputs = (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, state_BHKV)
    if chosen(backend, v_BTHV) == "torch":
        return eager.rwkv7_recurrence(*inputs, chunk=chunk, segment_ids=segment_ids)
    from . import chunks

    return chunks.rwkv7_recurrence(*inputs, chunk=chunk, segment_ids=segment_ids)


def linear_recurrence_step(
    q_BGK: Tensor,
    k_BGK: Tensor,
    v_BHV: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    state_BHKV: Tensor,
    *,
    scale: float = 1.0,
    backend: Backend | None = None,
) -> Tensor:
    if chosen(backend, v_BHV) == "torch":
        return reference.linear_recurrence_step(
            q_BGK, k_BGK, v_BHV, decay, beta, state_BHKV, scale=scale
        )
    from . import one_token

    return one_token.linear_recurrence_step(
        q_BGK, k_BGK, v_BHV, decay, beta, state_BHKV, scale=scale
    )


def rwkv7_recurrence_step(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
    *,
    backend: Backend | None = None,
) -> Tensor:
    inputs = (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK, state_BHKV)
    if chosen(backend, v_BHV) == "torch":
        return reference.rwkv7_recurrence_step(*inputs)
    from . import one_token

    return one_token.rwkv7_recurrence_step(*inputs)


def channel_scan(
    x_BTN: Tensor,
    decay_BTN: Tensor,
    state_BN: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    if chosen(backend, x_BTN) == "torch":
        return eager.channel_scan(x_BTN, decay_BTN, state_BN, segment_ids=segment_ids)
    from . import channels

    return channels.channel_scan(x_BTN, decay_BTN, state_BN, segment_ids=segment_ids)


def selective_scan(
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    state_BNS: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    inputs = (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N, state_BNS)
    if chosen(backend, x_BTN) == "torch":
        return eager.selective_scan(*inputs, segment_ids=segment_ids)
    from . import selective

    return selective.selective_scan(*inputs, segment_ids=segment_ids)
