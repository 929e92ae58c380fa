"""The door to the row operators: one function each, whatever the device.

    rms_norm(x, weight, eps)                                normalize the last dimension
    normed, summed = add_rms_norm(x, residual, weight, eps)     add, then normalize
    gated_rms_norm(x, gate, weight, eps, gate_first=False)  normalize, then gate; or the reverse
    l2_norm(x, eps)                                         the last dimension gets length one
    layer_norm(x, weight, bias, eps)
    glu(gate, up, "silu"), swiglu(gate, up)                 act(gate) * up
    relu2(up)                                               relu(up)^2
    rope(x, cos, sin, rotated=64)                           turn pairs of dimensions by position
    short_conv(x, weight, bias, activation="silu")          each channel with its last few tokens
    short_conv_step(x, tail, weight, activation="silu")     one token of it, the tail moves on
    linear_cross_entropy(h, weight, target)                 loss of a projection never held in full

What they compute stands in reference.py, and backend="torch" runs just that, for any input (the
loss in the chunks of loss.py). backend="triton" runs a kernel or raises `Unsupported` (../requirements.py)
before it launches anything. None picks by device: triton for CUDA tensors, torch for all others.
Every operator but the step has gradients; all take meta tensors, no rows at all included.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ..backend import Backend, chosen
from . import loss, reference


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    zero_centered: bool = False,
    *,
    backend: Backend | None = None,
) -> Tensor:
    if chosen(backend, x) == "torch":
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
    if chosen(backend, x) == "torch":
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
    settings = {"activation": activation, "gate_first": gate_first, "groups": groups}
    if chosen(backend, x) == "torch":
        return reference.gated_rms_norm(x, gate, weight, eps, **settings)
    from . import gated_norm

    return gated_norm.gated_rms_norm(x, gate, weight, eps, **settings)


def l2_norm(x: Tensor, eps: float, *, backend: Backend | None = None) -> Tensor:
    if chosen(backend, x) == "torch":
        return reference.l2_norm(x, eps)
    from . import l2

    return l2.l2_norm(x, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """torch's own on every device: already one fused kernel each way. All of one dtype."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def glu(
    gate: Tensor,
    up: Tensor,
    activation: reference.Activation,
    limit: float | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    if chosen(backend, gate) == "torch":
        return reference.glu(gate, up, activation, limit)
    from . import glu

    return glu.glu(gate, up, activation, limit)


def swiglu(gate: Tensor, up: Tensor, *, backend: Backend | None = None) -> Tensor:
    return glu(gate, up, "silu", backend=backend)


def relu2(up: Tensor, *, backend: Backend | None = None) -> Tensor:
    if chosen(backend, up) == "torch":
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
    settings = {"rotated": rotated, "interleaved": interleaved, "last": last}
    if chosen(backend, x_BTHD) == "torch":
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
    backend: Backend | None = None,
) -> Tensor:
    """`segment_ids` int32 [B, T], nondecreasing along T: inputs of another document count as zero."""
    settings = {"activation": activation, "tail_BWN": tail_BWN, "segment_ids": segment_ids}
    if chosen(backend, x_BTN) == "torch":
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
    if chosen(backend, x_BN) == "torch":
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
    return loss.linear_cross_entropy(
        h,
        weight_VD,
        target,
        bias=bias,
        softcap=softcap,
        scale=scale,
        z_loss=z_loss,
        backend=chosen(backend, h),
    )
