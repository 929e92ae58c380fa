"""Causal depthwise convolution (Triton).

Reference: `short_conv` in reference.py.
"""

# B batch, T tokens, N channels, W taps (a tail holds W - 1 tokens), P programs over tokens

# Triton reads an annotation on a kernel's argument as its type at run time; what it unrolls, and
# the tuples that grow there, have no type outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import as_rows, needs_gradient, require, require_float
from .configs import tile_for

FEWEST, MOST = 2, 8  # number of taps
RUN = 8  # consecutive tokens in one row of the backward's tile


@triton.jit
def taps(
    weight_ptr, first, channels, W: tl.constexpr, W_TILE: tl.constexpr, CHANNELS: tl.constexpr
):
    """The weight as a tuple of W rows [1, CHANNELS], from one load."""
    channel = first + tl.arange(0, CHANNELS)[:, None]
    tap = tl.arange(0, W_TILE)[None, :]
    inside = (tap < W) & (channel < channels)
    w = tl.load(weight_ptr + channel * W + tap, mask=inside, other=0.0).to(tl.float32)
    rows = ()
    for i in tl.static_range(W):
        rows += (tl.expand_dims(tl.sum(tl.where(tap == i, w, 0.0), 1), 0),)
    return rows


@triton.jit
def load_x(x_ptr, tail_ptr, token, channel, stride, tokens, channels, W, TAIL: tl.constexpr):
    """x of `token`, from the tail before the first token; zero beyond both."""
    present = (token >= 0) & (token < tokens) & (channel < channels)
    x = tl.load(x_ptr + token.to(tl.int64) * stride + channel, mask=present, other=0.0)
    if TAIL:
        before = (token < 0) & (token > -W) & (channel < channels)
        place = (token + W - 1) * channels + channel
        x = tl.where(before, tl.load(tail_ptr + place, mask=before, other=0.0), x)
    return x


@triton.jit
def segment_of(segment_ids_ptr, token, tokens):
    """The segment id of `token`; the tail has that of the first token."""
    return tl.load(segment_ids_ptr + tl.maximum(token, 0), mask=token < tokens, other=-1)


@triton.jit(do_not_specialize=["tokens"])
def short_conv_forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    tail_ptr,
    segment_ids_ptr,
    y_ptr,
    x_batch_stride,
    x_stride,
    tokens,
    channels,
    SILU: tl.constexpr,
    BIAS: tl.constexpr,
    TAIL: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    W: tl.constexpr,
    W_TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Short convolution, forward: z_t = bias + sum_i w_i x_{t - W + 1 + i}, y = silu(z) or z.

    A program takes a tile of TOKENS x CHANNELS; its taps overlap, so x is read from memory once.
    Bytes per token, b per element:
    2 b N; FLOPs per token: 2 W N.
    """
    blocks = tl.cdiv(tokens, TOKENS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    x_ptr += batch * x_batch_stride
    if TAIL:
        tail_ptr += batch * (W - 1) * channels
    if USE_SEGMENT_IDS:
        segment_ids_ptr += batch * tokens

    w = taps(weight_ptr, tl.program_id(1) * CHANNELS, channels, W, W_TILE, CHANNELS)
    z = tl.zeros([TOKENS, CHANNELS], tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for i in tl.static_range(W):
        at = token - (W - 1) + i
        x = load_x(x_ptr, tail_ptr, at, channel, x_stride, tokens, channels, W, TAIL)
        x = x.to(tl.float32)
        if USE_SEGMENT_IDS:
            own = segment_of(segment_ids_ptr, at, tokens) == segment_of(
                segment_ids_ptr, token, tokens
            )
            x = tl.where(own, x, 0.0)
        z += w[i] * x
    y = z * tl.sigmoid(z) if SILU else z
    y_ptr += (batch * tokens + token) * channels + channel
    inside = (token < tokens) & (channel < channels)
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def short_conv_backward(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    tail_ptr,
    segment_ids_ptr,
    dx_ptr,
    dweight_ptr,
    x_batch_stride,
    x_stride,
    tokens,
    channels,
    SILU: tl.constexpr,
    BIAS: tl.constexpr,
    TAIL: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    W: tl.constexpr,
    W_TILE: tl.constexpr,
    RUN: tl.constexpr,
    SEGMENTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Short convolution, backward: dz = dy * silu'(z), dx_t = sum_i w_i dz_{t + W - 1 - i},
    dw_i = sum_t dz_t x_{t - W + 1 + i}.

    A row of the tile holds a run of consecutive tokens and the W - 1 on either side of it, in
    registers: z is recomputed once, and a shift costs nothing. A program leaves its
    own partial dw, and with BIAS dbias = sum of dz below it. Bytes per token, b per element:
    3 b N; FLOPs per token: 6 W N.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(tokens, SEGMENTS * RUN)
    batch = (program // blocks).to(tl.int64)
    first = ((program % blocks) * SEGMENTS + tl.arange(0, SEGMENTS)[:, None]) * RUN
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    x_ptr += batch * x_batch_stride
    dy_ptr += batch * tokens * channels
    dx_ptr += batch * tokens * channels
    if TAIL:
        tail_ptr += batch * (W - 1) * channels
    if USE_SEGMENT_IDS:
        segment_ids_ptr += batch * tokens

    x, dy, own = (), (), ()  # x and own begin W - 1 tokens before the run
    for i in tl.static_range(RUN + 2 * (W - 1)):
        at = first - (W - 1) + i
        x += (load_x(x_ptr, tail_ptr, at, channel, x_stride, tokens, channels, W, TAIL),)
        if USE_SEGMENT_IDS:
            own += (segment_of(segment_ids_ptr, at, tokens),)
    for i in tl.static_range(RUN + W - 1):
        inside = (first + i < tokens) & (channel < channels)
        place = (first + i).to(tl.int64) * channels + channel
        dy += (tl.load(dy_ptr + place, mask=inside, other=0.0),)

    w = taps(weight_ptr, tl.program_id(1) * CHANNELS, channels, W, W_TILE, CHANNELS)
    bias = tl.zeros([1, CHANNELS], tl.float32)
    if BIAS:
        bias += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    dz = ()
    for t in tl.static_range(RUN + W - 1):
        g = dy[t].to(tl.float32)
        if SILU:
            z = bias
            for i in tl.static_range(W):
                seen = x[t + i].to(tl.float32)
                if USE_SEGMENT_IDS:
                    seen = tl.where(own[t + i] == own[t + W - 1], seen, 0.0)
                z += w[i] * seen
            s = tl.sigmoid(z)
            g *= s * (1.0 + z * (1.0 - s))
        dz += (g,)

    for t in tl.static_range(RUN):
        dx = tl.zeros([SEGMENTS, CHANNELS], tl.float32)
        for i in tl.static_range(W):
            g = dz[t + W - 1 - i]
            if USE_SEGMENT_IDS:
                g = tl.where(own[t + 2 * (W - 1) - i] == own[t + W - 1], g, 0.0)
            dx += w[i] * g
        inside = (first + t < tokens) & (channel < channels)
        place = (first + t).to(tl.int64) * channels + channel
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)

    dweight_ptr += program.to(tl.int64) * (W + BIAS) * channels + channel
    for i in tl.static_range(W):
        dw = tl.zeros([SEGMENTS, CHANNELS], tl.float32)
        for t in tl.static_range(RUN):
            seen = x[t + i].to(tl.float32)
            if USE_SEGMENT_IDS:
                seen = tl.where(own[t + i] == own[t + W - 1], seen, 0.0)
            dw += dz[t] * seen
        dw = tl.sum(dw, 0, keep_dims=True)
        tl.store(dweight_ptr + i * channels, dw, mask=channel < channels)
    if BIAS:
        db = tl.zeros([SEGMENTS, CHANNELS], tl.float32)
        for t in tl.static_range(RUN):
            db += dz[t]
        db = tl.sum(db, 0, keep_dims=True)
        tl.store(dweight_ptr + W * channels, db, mask=channel < channels)


def forward_launch(
    arch: str,
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    tail_BWN: Tensor | None,
    segment_ids_BT: Tensor | None,
    y_BTN: Tensor,
    silu: bool,
) -> Launch:
    """Launch of `short_conv_forward`."""
    batch, tokens, channels = x_BTN.shape
    config = tile_for(arch, "short_conv_forward")
    return Launch(
        kernel=short_conv_forward,
        grid=(batch * triton.cdiv(tokens, config.rows), triton.cdiv(channels, config.block)),
        arguments={
            "x_ptr": x_BTN,
            "weight_ptr": weight_NW,
            "bias_ptr": bias_N,
            "tail_ptr": tail_BWN,
            "segment_ids_ptr": segment_ids_BT,
            "y_ptr": y_BTN,
            "x_batch_stride": x_BTN.stride(0),
            "x_stride": x_BTN.stride(1),
            "tokens": tokens,
            "channels": channels,
            **kind_of(weight_NW, bias_N, silu),
            "TAIL": tail_BWN is not None,
            "USE_SEGMENT_IDS": segment_ids_BT is not None,
            "TOKENS": config.rows,
            "CHANNELS": config.block,
        },
        warps=config.warps,
    )


def partial_sums(arch: str, x_BTN: Tensor, weight_NW: Tensor, bias_N: Tensor | None) -> Tensor:
    """Buffer for partial gradients of weight and bias, one per program over tokens."""
    batch, tokens, channels = x_BTN.shape
    rows = tile_for(arch, "short_conv_backward").rows
    programs = batch * triton.cdiv(tokens, rows * RUN)
    entries = weight_NW.shape[1] + (bias_N is not None)
    return x_BTN.new_empty(programs, entries, channels, dtype=torch.float32)


def backward_launch(
    arch: str,
    dy_BTN: Tensor,
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    tail_BWN: Tensor | None,
    segment_ids_BT: Tensor | None,
    dx_BTN: Tensor,
    dweight_PWN: Tensor,
    silu: bool,
) -> Launch:
    """Launch of `short_conv_backward`."""
    _, tokens, channels = x_BTN.shape
    config = tile_for(arch, "short_conv_backward")
    return Launch(
        kernel=short_conv_backward,
        grid=(dweight_PWN.shape[0], triton.cdiv(channels, config.block)),
        arguments={
            "dy_ptr": dy_BTN,
            "x_ptr": x_BTN,
            "weight_ptr": weight_NW,
            "bias_ptr": bias_N,
            "tail_ptr": tail_BWN,
            "segment_ids_ptr": segment_ids_BT,
            "dx_ptr": dx_BTN,
            "dweight_ptr": dweight_PWN,
            "x_batch_stride": x_BTN.stride(0),
            "x_stride": x_BTN.stride(1),
            "tokens": tokens,
            "channels": channels,
            **kind_of(weight_NW, bias_N, silu),
            "TAIL": tail_BWN is not None,
            "USE_SEGMENT_IDS": segment_ids_BT is not None,
            "RUN": RUN,
            "SEGMENTS": config.rows,
            "CHANNELS": config.block,
        },
        warps=config.warps,
    )


def kind_of(weight_NW: Tensor, bias_N: Tensor | None, silu: bool) -> dict[str, int | bool]:
    """The constexpr arguments of both kernels."""
    width = weight_NW.shape[1]
    return {
        "SILU": silu,
        "BIAS": bias_N is not None,
        "W": width,
        "W_TILE": triton.next_power_of_2(width),
    }


@torch.library.custom_op("archfront::short_conv", mutates_args=())
def short_conv_op(
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    tail_BWN: Tensor | None,
    segment_ids_BT: Tensor | None,
    silu: bool,
) -> Tensor:
    """Custom operator `archfront::short_conv`, differentiable; the caller checks inputs."""
    y_BTN = x_BTN.new_empty(x_BTN.shape)
    operands = x_BTN, weight_NW, bias_N, tail_BWN, segment_ids_BT
    run(forward_launch(arch_of(x_BTN.device), *operands, y_BTN, silu), x_BTN)
    return y_BTN


@short_conv_op.register_fake
def _short_conv_output(
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    tail_BWN: Tensor | None,
    segment_ids_BT: Tensor | None,
    silu: bool,
) -> Tensor:
    return x_BTN.new_empty(x_BTN.shape)


@torch.library.custom_op("archfront::short_conv_backward", mutates_args=())
def short_conv_backward_op(
    dy_BTN: Tensor,
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    tail_BWN: Tensor | None,
    segment_ids_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `short_conv_op`."""
    arch = arch_of(x_BTN.device)
    dx_BTN = torch.empty_like(dy_BTN)
    dweight_PWN = partial_sums(arch, x_BTN, weight_NW, bias_N)
    operands = dy_BTN, x_BTN, weight_NW, bias_N, tail_BWN, segment_ids_BT
    run(backward_launch(arch, *operands, dx_BTN, dweight_PWN, silu), x_BTN)
    return dx_BTN, dweight_PWN.sum(0)


@short_conv_backward_op.register_fake
def _short_conv_gradients(
    dy_BTN: Tensor,
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    tail_BWN: Tensor | None,
    segment_ids_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    channels, width = weight_NW.shape
    entries = width + (bias_N is not None)
    return torch.empty_like(dy_BTN), x_BTN.new_empty(entries, channels, dtype=torch.float32)


def _save_short_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.silu = inputs
    ctx.save_for_backward(*operands)


def _backward_short_conv(ctx: Any, dy_BTN: Tensor) -> tuple[Tensor | None, ...]:
    _, weight_NW, bias_N, *_ = ctx.saved_tensors
    # autograd may pass an expanded gradient; the kernel's is contiguous
    dx_BTN, dweight_WN = short_conv_backward_op(dy_BTN.contiguous(), *ctx.saved_tensors, ctx.silu)
    width = weight_NW.shape[1]
    dweight_NW = dweight_WN[:width].T.contiguous().to(weight_NW.dtype)
    dbias_N = None if bias_N is None else dweight_WN[width].to(bias_N.dtype)
    return dx_BTN, dweight_NW, dbias_N, None, None, None


short_conv_op.register_autograd(_backward_short_conv, setup_context=_save_short_conv)


def short_conv(
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None,
    *,
    activation: Literal["silu"] | None,
    tail_BWN: Tensor | None,
    segment_ids: Tensor | None,
) -> Tensor:
    """Triton implementation of `op.short_conv`. Raises Unsupported."""
    require(x_BTN.dim() == 3, "x must be [batch, tokens, channels]", shape=tuple(x_BTN.shape))
    batch, tokens, channels = x_BTN.shape
    as_rows(x_BTN[:1], "x")
    require_operands(x_BTN, weight_NW, bias_N, activation)
    if tail_BWN is not None:
        require_tail(tail_BWN, x_BTN, (batch, weight_NW.shape[1] - 1, channels))
        require(not needs_gradient(tail_BWN), "the tail has no gradient", requires_grad=True)
    if segment_ids is not None:
        require(
            segment_ids.shape == (batch, tokens)
            and segment_ids.dtype == torch.int32
            and segment_ids.device == x_BTN.device
            and segment_ids.is_contiguous(),
            f"segment_ids must be contiguous, int32, of shape ({batch}, {tokens}), "
            f"on {x_BTN.device}",
            shape=tuple(segment_ids.shape),
            dtype=segment_ids.dtype,
            device=segment_ids.device,
        )
    operands = x_BTN, weight_NW, bias_N, tail_BWN, segment_ids
    return short_conv_op(*operands, activation == "silu")


def require_operands(
    x: Tensor, weight_NW: Tensor, bias_N: Tensor | None, activation: str | None
) -> None:
    """Raise Unsupported unless the kernels take x, weight, bias and activation."""
    channels = x.shape[-1]
    require_device(x)
    require_float(x, "x")
    require(activation in ("silu", None), "the activation must be silu or None", got=activation)
    require(
        weight_NW.dim() == 2
        and weight_NW.shape[0] == channels
        and FEWEST <= weight_NW.shape[1] <= MOST,
        f"weight must be [{channels} channels, {FEWEST} to {MOST} taps]",
        shape=tuple(weight_NW.shape),
    )
    for name, parameter in (("weight", weight_NW), ("bias", bias_N)):
        if parameter is not None:
            require_float(parameter, name)
            require(
                parameter.is_contiguous() and parameter.device == x.device,
                f"{name} must be contiguous, on {x.device}",
                strides=parameter.stride(),
                device=parameter.device,
            )
    if bias_N is not None:
        require(bias_N.shape == (channels,), f"bias must be [{channels}]", shape=bias_N.shape)


def require_tail(tail_BWN: Tensor, x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise Unsupported unless the tail has this shape, and x's dtype and device."""
    require(
        (tail_BWN.shape, tail_BWN.dtype, tail_BWN.device) == (shape, x.dtype, x.device)
        and tail_BWN.is_contiguous(),
        f"the tail must be contiguous, of shape {shape}, {x.dtype}, on {x.device}",
        shape=tuple(tail_BWN.shape),
        strides=tail_BWN.stride(),
        dtype=tail_BWN.dtype,
        device=tail_BWN.device,
    )
