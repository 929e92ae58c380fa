"""Public API of the row-wise operators: one function each, on any device.

    rms_norm(x, weight, eps)                                normalize the last dimension
    normed, summed = add_rms_norm(x, residual, weight, eps)     add, then normalize
    gated_rms_norm(x, gate, weight, eps, gate_first=False)  normalize, then gate; or the reverse
    l2_norm(x, eps)                                         scale the last dimension to length 1
    layer_norm(x, weight, bias, eps)
    glu(gate, up, "silu"), swiglu(gate, up)                 act(gate) * up
    relu2(up)                                               relu(up)^2
    rope(x, cos, sin, rotated=64)                           rotary position embedding
    short_conv(x, weight, bias, activation="silu")          causal depthwise convolution
    short_conv_step(x, tail, weight, activation="silu")     one token of it, updates the tail
    linear_cross_entropy(h, weight, target)                 loss without the full logits

reference.py defines what they compute, and backend="torch" runs it, for any input (the loss over
chunks of rows, see loss.py). backend="triton" runs kernels, or raises `requirements.Unsupported`
before anything is launched. None chooses by device: "triton" for CUDA tensors, "torch" for others.
Inputs are float32, bfloat16 or float16; arithmetic is float32, results are rounded once to the
dtype of the first input. All but short_conv_step have gradients; all take meta tensors and inputs
without rows.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ..backend import Backend, choose_backend
from ..segments import resolve_segment_ids
from . import loss, reference


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    zero_centered: bool = False,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    `x` [..., D] with evenly spaced rows, `weight` [D]; `zero_centered` takes 1 + weight as the
    factor (Gemma). Returns x's shape and dtype. Raises Unsupported.
    """
    if choose_backend(backend, x) == "torch":
        return reference.rms_norm(x, weight, eps, zero_centered)
    from . import norm

    return norm.rms_norm(x, weight, eps, zero_centered)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    zero_centered: bool = False,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Residual sum and RMSNorm in one pass: (normed, summed), summed = x + residual.

    `x` and `residual` [..., D] of one dtype, `weight` [D]. Raises Unsupported.
    """
    if choose_backend(backend, x) == "torch":
        return reference.add_rms_norm(x, residual, weight, eps, zero_centered)
    from . import norm

    return norm.add_rms_norm(x, residual, weight, eps, zero_centered)


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    *,
    activation: Literal["silu", "sigmoid"] = "silu",
    gate_first: bool,
    groups: int = 1,
    backend: Backend | None = None,
) -> Tensor:
    """Gated RMSNorm: norm(x) * weight * act(gate), or norm(x * act(gate)) * weight (`gate_first`).

    The first is Gated DeltaNet's (arXiv 2412.06464), with a sigmoid KDA's (2510.26692); the second
    is Mamba-2's (2405.21060). `x` and `gate` [..., D], `weight` [D]; the norm is taken over each of
    `groups` equal parts of D. Returns x's shape and dtype. Raises Unsupported.
    """
    settings = {"activation": activation, "gate_first": gate_first, "groups": groups}
    if choose_backend(backend, x) == "torch":
        return reference.gated_rms_norm(x, gate, weight, eps, **settings)
    from . import gated_norm

    return gated_norm.gated_rms_norm(x, gate, weight, eps, **settings)


def l2_norm(x: Tensor, eps: float, *, backend: Backend | None = None) -> Tensor:
    """L2 norm: x / sqrt(sum(x^2) + eps) over the last dimension of `x`. Raises Unsupported."""
    if choose_backend(backend, x) == "torch":
        return reference.l2_norm(x, eps)
    from . import l2

    return l2.l2_norm(x, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm (arXiv 1607.06450): (x - mean) / sqrt(var + eps) * weight + bias.

    Over the last dimension of `x` [..., D]; `weight` and `bias` [D], all of one dtype. torch's own
    on every device, where it is one fused kernel each way.
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def glu(
    gate: Tensor,
    up: Tensor,
    activation: reference.Activation,
    limit: float | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Gated linear unit (arXiv 2002.05202): act(gate) * up, on two tensors [..., F] of one dtype.

    `activation` "silu", "gelu", "gelu_tanh" or "oai" (gpt-oss: gate sigmoid(1.702 gate) (up + 1)).
    `limit` first clamps gate from above and up on both sides; None is no clamp, 7 for "oai".
    Raises Unsupported.
    """
    if choose_backend(backend, gate) == "torch":
        return reference.glu(gate, up, activation, limit)
    from . import glu

    return glu.glu(gate, up, activation, limit)


def swiglu(gate: Tensor, up: Tensor, *, backend: Backend | None = None) -> Tensor:
    """SwiGLU: silu(gate) * up, `glu` with "silu"."""
    return glu(gate, up, "silu", backend=backend)


def relu2(up: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Squared ReLU (Primer, arXiv 2109.08668): relu(up)^2, elementwise. Raises Unsupported."""
    if choose_backend(backend, up) == "torch":
        return reference.relu2(up)
    from . import glu

    return glu.relu2(up)


def rope(
    x_BTHD: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    rotated: int,
    interleaved: bool = False,
    last: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864): pairs (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        x_BTHD: queries or keys [B, T, H, D].
        cos, sin: tables [T, rotated / 2], or per row [B, T, rotated / 2]; no gradient.
        rotated: how many of the D dimensions are rotated: the first, with `last` the last.
        interleaved: pair p is (2 p, 2 p + 1) instead of (p, p + rotated / 2).

    Returns x's shape and dtype. Raises Unsupported.
    """
    settings = {"rotated": rotated, "interleaved": interleaved, "last": last}
    if choose_backend(backend, x_BTHD) == "torch":
        return reference.rope(x_BTHD, cos, sin, **settings)
    from . import rope

    return rope.rope(x_BTHD, cos, sin, **settings)


def short_conv(
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None = None,
    *,
    activation: Literal["silu"] | None,
    tail_BWN: Tensor | None = None,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Causal depthwise convolution: y_t = act(bias + sum_{j < W} weight[W - 1 - j] * x_{t - j}).

    Args:
        x_BTN: inputs [B, T, N].
        weight_NW, bias_N: W taps per channel, the newest input's last; bias or None.
        activation: "silu" or None.
        tail_BWN: the W - 1 inputs before the first token [B, W - 1, N], of its segment, in x's
            dtype; None is zeros. No gradient on "triton".
        segment_ids: int32 [B, T], nondecreasing along T: inputs of other segments count as zero.
        cu_seqlens: the same as cumulative lengths [sequences + 1] for B = 1; see segments.py.
        backend: "torch", "triton", or None to choose by device.

    Returns y [B, T, N] in x's dtype. Raises Unsupported; ValueError for both segment_ids and
    cu_seqlens, or cu_seqlens with B > 1.
    """
    settings = {
        "activation": activation,
        "tail_BWN": tail_BWN,
        "segment_ids": resolve_segment_ids(segment_ids, cu_seqlens, x_BTN),
    }
    if choose_backend(backend, x_BTN) == "torch":
        return reference.short_conv(x_BTN, weight_NW, bias_N, **settings)
    from . import conv

    return conv.short_conv(x_BTN, weight_NW, bias_N, **settings)


def short_conv_step(
    x_BN: Tensor,
    tail_BWN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None = None,
    *,
    activation: Literal["silu"] | None,
    backend: Backend | None = None,
) -> Tensor:
    """One token of `short_conv` for decoding, without gradients: `x_BN` [B, N] -> y [B, N].

    `tail_BWN` [B, W - 1, N] are the inputs before it; shifted by one in place. Raises Unsupported.
    """
    if choose_backend(backend, x_BN) == "torch":
        return reference.short_conv_step(x_BN, tail_BWN, weight_NW, bias_N, activation=activation)
    from . import conv_step

    return conv_step.short_conv_step(x_BN, tail_BWN, weight_NW, bias_N, activation=activation)


def linear_cross_entropy(
    h: Tensor,
    weight_VD: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    z_loss: float = 0.0,
    backend: Backend | None = None,
) -> Tensor:
    """Mean cross-entropy of a linear head, forward and gradients over chunks of rows.

    The full logits [M, V] are never stored (as Liger Kernel, arXiv 2410.10989).

    Args:
        h: hidden states [..., D].
        weight_VD, bias: the head [V, D] and its bias [V] or None.
        target: class indices of h's leading shape, int64; -100 is ignored.
        softcap: c of softcap * tanh(logits / softcap), after `scale`.
        scale: factor of the logits.
        z_loss: weight of lse^2 (PaLM, arXiv 2204.02311).
        backend: "torch", "triton", or None to choose by device.

    Returns a float32 scalar (float64 for float64 inputs); 0 without targets. Raises Unsupported.
    """
    return loss.linear_cross_entropy(
        h,
        weight_VD,
        target,
        bias=bias,
        softcap=softcap,
        scale=scale,
        z_loss=z_loss,
        backend=choose_backend(backend, h),
    )
