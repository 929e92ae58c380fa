"""One-token step of the causal depthwise convolution for decoding (Triton).

Reference: `short_conv_step` in reference.py.
"""

# B sequences, N channels, W taps (a tail holds W - 1 tokens)

# Triton reads an annotation on a kernel's argument as its type at run time, and what it unrolls
# has no type outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, run
from ..requirements import as_rows, needs_gradient, require
from .configs import tile_for
from .conv import kind_of, require_operands, require_tail, taps


@triton.jit(do_not_specialize=["sequences"])
def short_conv_step_forward(
    x_ptr,
    tail_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    x_stride,
    sequences,
    channels,
    SILU: tl.constexpr,
    BIAS: tl.constexpr,
    W: tl.constexpr,
    W_TILE: tl.constexpr,
    SEQUENCES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Short convolution, one token per sequence; shifts the tail by it in place.

    Bytes per sequence, b per element: 2 W b N.
    """
    sequence = tl.program_id(0).to(tl.int64) * SEQUENCES + tl.arange(0, SEQUENCES)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (sequence < sequences) & (channel < channels)
    tail_ptr += sequence * (W - 1) * channels + channel

    w = taps(weight_ptr, tl.program_id(1) * CHANNELS, channels, W, W_TILE, CHANNELS)
    z = tl.zeros([SEQUENCES, CHANNELS], tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for i in tl.static_range(W - 1):
        x = tl.load(tail_ptr + i * channels, mask=inside, other=0.0)
        if i > 0:
            tl.store(tail_ptr + (i - 1) * channels, x, mask=inside)
        z += w[i] * x.to(tl.float32)
    x = tl.load(x_ptr + sequence * x_stride + channel, mask=inside, other=0.0)
    tl.store(tail_ptr + (W - 2) * channels, x, mask=inside)
    z += w[W - 1] * x.to(tl.float32)
    y = z * tl.sigmoid(z) if SILU else z
    y_ptr += sequence * channels + channel
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch(
    arch: str,
    x_BN: Tensor,
    tail_BWN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    y_BN: Tensor,
    silu: bool,
) -> Launch:
    """Launch of `short_conv_step_forward`."""
    sequences, channels = x_BN.shape
    config = tile_for(arch, "short_conv_step")
    return Launch(
        kernel=short_conv_step_forward,
        grid=(triton.cdiv(sequences, config.rows), triton.cdiv(channels, config.block)),
        arguments={
            "x_ptr": x_BN,
            "tail_ptr": tail_BWN,
            "weight_ptr": weight_NW,
            "bias_ptr": bias_N,
            "y_ptr": y_BN,
            "x_stride": x_BN.stride(0),
            "sequences": sequences,
            "channels": channels,
            **kind_of(weight_NW, bias_N, silu),
            "SEQUENCES": config.rows,
            "CHANNELS": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::short_conv_step", mutates_args=("tail_BWN",))
def short_conv_step_op(
    x_BN: Tensor, tail_BWN: Tensor, weight_NW: Tensor, bias_N: Tensor | None, silu: bool
) -> Tensor:
    """Custom operator `archfront::short_conv_step`; the caller checks inputs."""
    y_BN = x_BN.new_empty(x_BN.shape)
    operands = x_BN, tail_BWN, weight_NW, bias_N
    run(launch(arch_of(x_BN.device), *operands, y_BN, silu), x_BN)
    return y_BN


@short_conv_step_op.register_fake
def _short_conv_step_output(
    x_BN: Tensor, tail_BWN: Tensor, weight_NW: Tensor, bias_N: Tensor | None, silu: bool
) -> Tensor:
    return x_BN.new_empty(x_BN.shape)


def short_conv_step(
    x_BN: Tensor,
    tail_BWN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    *,
    activation: Literal["silu"] | None,
) -> Tensor:
    """Triton implementation of `op.short_conv_step`. Raises Unsupported."""
    require(x_BN.dim() == 2, "x must be [batch, channels]", shape=tuple(x_BN.shape))
    require_operands(x_BN, weight_NW, bias_N, activation)
    batch, channels = x_BN.shape
    require_tail(tail_BWN, x_BN, (batch, weight_NW.shape[1] - 1, channels))
    gradient = needs_gradient(x_BN, tail_BWN, weight_NW)
    require(not gradient, "a step has no gradient: use torch.no_grad()", requires_grad=True)
    return short_conv_step_op(as_rows(x_BN, "x"), tail_BWN, weight_NW, bias_N, activation == "silu")
