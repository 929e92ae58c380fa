"""Public API of the linear recurrences: one function each, on any device.

    o, state = linear_recurrence(q, k, v, decay, beta, state)     whole sequences
    o, state = rwkv7_recurrence(r, w, k, v, a, b, state)
    o = linear_recurrence_step(q, k, v, decay, beta, state)       one token; updates state in place
    o = rwkv7_recurrence_step(r, w, k, v, a, b, state)
    h, state = channel_scan(x, decay, state)                      one number per channel
    y, state = selective_scan(x, dt, A, B, C, D, state)           Mamba-1

reference.py defines what they compute. backend="torch" runs eager.py, its equal over chunks, or for
one token the reference itself. backend="triton" runs kernels, or raises `requirements.Unsupported`
before anything is launched. None chooses by device: "triton" for CUDA tensors, "torch" for others.

Outputs have the dtype of v (or x); states are float32, or float64 beside float64 values; a state of
None is zero. All functions but the steps have gradients, also to the given and from the returned
state. Decays are natural logarithms, at most 0, as strong as the caller likes: the implementations
raise them to configs.MIN_LOG_DECAY_PER_HEAD or MIN_LOG_DECAY_PER_CHANNEL, below which float32
cannot tell them apart, and give no gradient to those that they raised.

Packed sequences: `segment_ids` [B, T] int32, nondecreasing along T, or `cu_seqlens` [N + 1] of a
batch of one row (see segments.py). A segment starts from a zero state; `state` belongs to the first
segment of its row, the returned one to the last.
"""

# B batch, T tokens, G key heads, H value heads (key head g serves the H / G value heads from
# g H / G on), K key width, V value width, N channels, S states per channel

from torch import Tensor

from ..backend import Backend, choose_backend
from ..segments import resolve_segment_ids
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
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention with optional decay and delta rule over whole sequences.

        S_t = e^{g_t} S_{t-1} + k_t v'_t^T              o_t = scale S_t^T q_t
        v'_t = v_t, or with beta: beta_t (v_t - (e^{g_t} S_{t-1})^T k_t)

    Retention (arXiv 2307.08621), Mamba-2 (2405.21060), GLA (2312.06635), DeltaNet (2406.06484),
    Gated DeltaNet (2412.06464) and Kimi Delta Attention (2510.26692) are cases of it.

    Args:
        q_BTGK, k_BTGK: queries and keys [B, T, G, K], in the dtype of v; G must divide H.
        v_BTHV: values [B, T, H, V]; float32 or bfloat16 for "triton", any float for "torch".
        decay: g, natural logarithm, <= 0: None (no decay), [H], [B, T, H] or [B, T, H, K].
        beta: write strength of the delta rule [B, T, H], >= 0; None writes v itself.
        state_BHKV: initial state [B, H, K, V], float32 (float64 for float64 values); None is zero.
        scale: factor of the output, commonly K ** -0.5.
        chunk: tokens per chunk, 16, 32 or 64; changes speed, not the result.
        segment_ids, cu_seqlens: boundaries of packed sequences, at most one of them.
        backend: "torch", "triton", or None to choose by device.

    Returns:
        o_BTHV [B, T, H, V] in the dtype of v, and the final state [B, H, K, V].

    Raises:
        Unsupported: the kernels do not take these shapes, dtypes, strides or this GPU.
        ValueError: both segment_ids and cu_seqlens, or cu_seqlens with B > 1.
    """
    options = {
        "scale": scale,
        "chunk": chunk,
        "segment_ids": resolve_segment_ids(segment_ids, cu_seqlens, v_BTHV),
    }
    if choose_backend(backend, v_BTHV) == "torch":
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
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """RWKV-7's generalized delta rule over whole sequences (arXiv 2503.14456).

        S_t = diag(e^{w_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T          o_t = S_t^T r_t

    The paper's state is this one transposed.

    Args:
        r_BTHK, k_BTHK: receptance and keys [B, T, H, K], in the dtype of v.
        w_BTHK: decay per channel [B, T, H, K], natural logarithm, <= 0.
        v_BTHV: values [B, T, H, V]; float32 or bfloat16 for "triton", any float for "torch".
        a_BTHK, b_BTHK: removal and replacement keys [B, T, H, K], in the dtype of v.
        state_BHKV: initial state [B, H, K, V], float32; None is zero.
        chunk, segment_ids, cu_seqlens, backend: as in `linear_recurrence`.

    Returns:
        o_BTHV [B, T, H, V] in the dtype of v, and the final state [B, H, K, V].

    Raises:
        Unsupported, ValueError: as `linear_recurrence`.
    """
    options = {
        "chunk": chunk,
        "segment_ids": resolve_segment_ids(segment_ids, cu_seqlens, v_BTHV),
    }
    inputs = (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, state_BHKV)
    if choose_backend(backend, v_BTHV) == "torch":
        return eager.rwkv7_recurrence(*inputs, **options)
    from . import chunks

    return chunks.rwkv7_recurrence(*inputs, **options)


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
    """`linear_recurrence` of one token per row, for decoding; no gradients.

    Args:
        q_BGK, k_BGK, v_BHV: one token's queries, keys [B, G, K] and values [B, H, V].
        decay: natural logarithm, <= 0: None, [H], [B, H] or [B, H, K].
        beta: [B, H], or None without the delta rule.
        state_BHKV: [B, H, K, V], float32 or bfloat16; overwritten with the new state.
        scale, backend: as in `linear_recurrence`.

    Returns:
        o_BHV [B, H, V] in the dtype of v.

    Raises:
        Unsupported: the kernel does not take these shapes, dtypes, strides or this GPU.
    """
    if choose_backend(backend, v_BHV) == "torch":
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
    """`rwkv7_recurrence` of one token per row, for decoding; no gradients.

    Args:
        r_BHK, w_BHK, k_BHK, a_BHK, b_BHK: [B, H, K]; v_BHV: [B, H, V].
        state_BHKV: [B, H, K, V], float32 or bfloat16; overwritten with the new state.

    Returns:
        o_BHV [B, H, V] in the dtype of v.

    Raises:
        Unsupported: the kernel does not take these shapes, dtypes, strides or this GPU.
    """
    inputs = (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK, state_BHKV)
    if choose_backend(backend, v_BHV) == "torch":
        return reference.rwkv7_recurrence_step(*inputs)
    from . import one_token

    return one_token.rwkv7_recurrence_step(*inputs)


def channel_scan(
    x_BTN: Tensor,
    decay_BTN: Tensor,
    state_BN: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """First-order linear recurrence of each channel: h_t = e^{g_t} h_{t-1} + x_t.

    The scan of RG-LRU (Griffin, arXiv 2402.19427, section 2.4), gates applied by the caller.

    Args:
        x_BTN: inputs [B, T, N].
        decay_BTN: g, natural logarithm [B, T, N], <= 0; no bound is applied.
        state_BN: initial state [B, N], float32; None is zero.
        segment_ids, cu_seqlens, backend: as in `linear_recurrence`.

    Returns:
        h_BTN [B, T, N] in the dtype of x, and the final state [B, N].

    Raises:
        Unsupported, ValueError: as `linear_recurrence`.
    """
    segment_ids = resolve_segment_ids(segment_ids, cu_seqlens, x_BTN)
    if choose_backend(backend, x_BTN) == "torch":
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
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-1's selective state space (arXiv 2312.00752, algorithm 2, with its code's Euler step).

        h_t = e^{dt_t A} h_{t-1} + dt_t x_t B_t^T              y_t = h_t C_t + D x_t

    Args:
        x_BTN: inputs [B, T, N].
        dt_BTN: step sizes [B, T, N], >= 0, after their softplus.
        A_NS: state matrix's diagonal [N, S], <= 0; "triton" takes S <= 64.
        B_BTS, C_BTS: input and output maps [B, T, S], shared by all channels.
        D_N: skip connection [N].
        state_BNS: initial state [B, N, S], float32; None is zero.
        segment_ids, cu_seqlens, backend: as in `linear_recurrence`.

    Returns:
        y_BTN [B, T, N] in the dtype of x, and the final state [B, N, S].

    Raises:
        Unsupported, ValueError: as `linear_recurrence`.
    """
    segment_ids = resolve_segment_ids(segment_ids, cu_seqlens, x_BTN)
    inputs = (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N, state_BNS)
    if choose_backend(backend, x_BTN) == "torch":
        return eager.selective_scan(*inputs, segment_ids=segment_ids)
    from . import selective

    return selective.selective_scan(*inputs, segment_ids=segment_ids)
