"""Gated linear units and squared ReLU (Triton).

Reference: `glu` and `relu2` in reference.py.
"""

# M rows, F width of the hidden layer

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import as_rows, require, require_float, require_like
from .configs import config_for
from .reference import OAI_LIMIT, OAI_SLOPE, Activation

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "oai")  # a kernel's ACTIVATION is an index into them
GELU, GELU_TANH, OAI, RELU2 = (tl.constexpr(place) for place in (1, 2, 3, 4))
WIDEST_TILE = 1024  # elementwise: wider rows are split
SLOPE = tl.constexpr(OAI_SLOPE)
SQRT_HALF = tl.constexpr(math.sqrt(0.5))
DENSITY_AT_ZERO = tl.constexpr(math.sqrt(0.5 / math.pi))  # of the normal distribution
# gelu_tanh: gate * sigmoid(LINEAR * gate + CUBIC * gate^3) (arXiv 1606.08415)
LINEAR = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi))
CUBIC = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi) * 0.044715)


@triton.jit
def gating_factor(gate, ACTIVATION: tl.constexpr):
    """(s, ds/dgate) of an activation gate * s(gate)."""
    if ACTIVATION == GELU:
        s = 0.5 + 0.5 * tl.erf(gate * SQRT_HALF)
        slope = tl.exp(-0.5 * gate * gate) * DENSITY_AT_ZERO
    elif ACTIVATION == GELU_TANH:
        square = gate * gate
        s = tl.sigmoid(gate * (square * CUBIC + LINEAR))
        slope = s * (1.0 - s) * (square * 3.0 * CUBIC + LINEAR)
    elif ACTIVATION == OAI:
        s = tl.sigmoid(gate * SLOPE)
        slope = s * (1.0 - s) * SLOPE
    else:
        s = tl.sigmoid(gate)
        slope = s * (1.0 - s)
    return s, slope


@triton.jit(do_not_specialize=["num_rows"])
def glu_forward(
    gate_ptr,
    up_ptr,
    y_ptr,
    gate_stride,
    up_stride,
    num_rows,
    width,
    limit,
    ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """GLU, forward: y = gate * s(gate) * up, oai with up + 1 for up; relu2: y = max(up, 0)^2.

    With LIMITED gate <= limit and |up| <= limit first. A program takes a tile of ROWS x BLOCK.
    Bytes per row, b per element: 3 b F, for relu2 2 b F.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    up = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)

    if ACTIVATION == RELU2:
        positive = tl.maximum(up, 0.0)
        y = positive * positive
    else:
        gate = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
        if LIMITED:
            gate = tl.minimum(gate, limit)
            up = tl.maximum(tl.minimum(up, limit), -limit)
        if ACTIVATION == OAI:
            up += 1.0
        s = gating_factor(gate, ACTIVATION)[0]
        y = gate * s * up
    tl.store(y_ptr + row * width + col, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def glu_backward(
    dy_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    gate_stride,
    up_stride,
    num_rows,
    width,
    limit,
    ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """GLU, backward: dgate = dy up (s + gate ds), dup = dy gate s; relu2: dup = 2 dy max(up, 0).

    With LIMITED clamped inputs have no gradient. The forward saves only its inputs.
    Bytes per row, b per element: 5 b F, for relu2 3 b F.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    dy = tl.load(dy_ptr + row * width + col, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)

    if ACTIVATION == RELU2:
        dup = dy * 2.0 * tl.maximum(up, 0.0)
    else:
        gate = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
        gate_passes, up_passes = gate <= limit, tl.abs(up) <= limit
        if LIMITED:
            gate = tl.minimum(gate, limit)
            up = tl.maximum(tl.minimum(up, limit), -limit)
        if ACTIVATION == OAI:
            up += 1.0
        s, slope = gating_factor(gate, ACTIVATION)
        dgate = dy * up * (s + gate * slope)
        dup = dy * gate * s
        if LIMITED:
            dgate = tl.where(gate_passes, dgate, 0.0)
            dup = tl.where(up_passes, dup, 0.0)
        tl.store(dgate_ptr + row * width + col, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + row * width + col, dup.to(dup_ptr.dtype.element_ty), mask=inside)


def forward_launch(
    arch: str,
    gate_MF: Tensor | None,
    up_MF: Tensor,
    y_MF: Tensor,
    activation: str,
    limit: float | None,
) -> Launch:
    """Launch of `glu_forward`."""
    pointers = {"gate_ptr": gate_MF, "up_ptr": up_MF, "y_ptr": y_MF}
    return _launch(glu_forward, arch, pointers, activation, limit)


def backward_launch(
    arch: str,
    dy_MF: Tensor,
    gate_MF: Tensor | None,
    up_MF: Tensor,
    dgate_MF: Tensor | None,
    dup_MF: Tensor,
    activation: str,
    limit: float | None,
) -> Launch:
    """Launch of `glu_backward`."""
    pointers = {
        "dy_ptr": dy_MF,
        "gate_ptr": gate_MF,
        "up_ptr": up_MF,
        "dgate_ptr": dgate_MF,
        "dup_ptr": dup_MF,
    }
    return _launch(glu_backward, arch, pointers, activation, limit)


def _launch(
    kernel: Any,
    arch: str,
    pointers: dict[str, Tensor | None],
    activation: str,
    limit: float | None,
) -> Launch:
    gate_MF, up_MF = pointers["gate_ptr"], pointers["up_ptr"]
    assert up_MF is not None
    num_rows, width = up_MF.shape
    config = config_for(arch, "glu", min(width, WIDEST_TILE))
    return Launch(
        kernel=kernel,
        grid=(triton.cdiv(num_rows, config.rows), triton.cdiv(width, config.block)),
        arguments={
            **pointers,
            "gate_stride": 0 if gate_MF is None else gate_MF.stride(0),
            "up_stride": up_MF.stride(0),
            "num_rows": num_rows,
            "width": width,
            "limit": 0.0 if limit is None else limit,
            "ACTIVATION": (*ACTIVATIONS, "relu2").index(activation),
            "LIMITED": limit is not None,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::glu", mutates_args=())
def glu_op(gate_MF: Tensor | None, up_MF: Tensor, activation: str, limit: float | None) -> Tensor:
    """Custom operator `archfront::glu`, differentiable; the caller checks inputs."""
    y_MF = _glu_output(gate_MF, up_MF, activation, limit)
    run(forward_launch(arch_of(up_MF.device), gate_MF, up_MF, y_MF, activation, limit), up_MF)
    return y_MF


@glu_op.register_fake
def _glu_output(
    gate_MF: Tensor | None, up_MF: Tensor, activation: str, limit: float | None
) -> Tensor:
    return up_MF.new_empty(up_MF.shape)


@torch.library.custom_op("archfront::glu_backward", mutates_args=())
def glu_backward_op(
    dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor, activation: str, limit: float | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `glu_op`."""
    gradients = torch.empty_like(dy_MF), torch.empty_like(dy_MF)
    launch = backward_launch(
        arch_of(up_MF.device), dy_MF, gate_MF, up_MF, *gradients, activation, limit
    )
    run(launch, up_MF)
    return gradients


@glu_backward_op.register_fake
def _glu_gradients(
    dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor, activation: str, limit: float | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dy_MF), torch.empty_like(dy_MF)


@torch.library.custom_op("archfront::relu2_backward", mutates_args=())
def relu2_backward_op(dy_MF: Tensor, up_MF: Tensor) -> Tensor:
    """Gradients of `relu2_op`."""
    dup_MF = torch.empty_like(dy_MF)
    arch = arch_of(up_MF.device)
    run(backward_launch(arch, dy_MF, None, up_MF, None, dup_MF, "relu2", None), up_MF)
    return dup_MF


@relu2_backward_op.register_fake
def _relu2_gradient(dy_MF: Tensor, up_MF: Tensor) -> Tensor:
    return torch.empty_like(dy_MF)


def _save_glu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate_MF, up_MF, ctx.activation, ctx.limit = inputs
    ctx.save_for_backward(gate_MF, up_MF)


def _backward_glu(ctx: Any, dy_MF: Tensor) -> tuple[Tensor | None, ...]:
    gate_MF, up_MF = ctx.saved_tensors
    dy_MF = dy_MF.contiguous()  # autograd may pass an expanded gradient
    if gate_MF is None:
        return None, relu2_backward_op(dy_MF, up_MF), None, None
    return *glu_backward_op(dy_MF, gate_MF, up_MF, ctx.activation, ctx.limit), None, None


glu_op.register_autograd(_backward_glu, setup_context=_save_glu)


def glu(gate: Tensor, up: Tensor, activation: Activation, limit: float | None = None) -> Tensor:
    """Triton implementation of `op.glu`. Raises Unsupported."""
    require_device(gate)
    require_float(gate, "gate")
    require_like(up, gate, "up")
    constraint = f"the activation must be one of {', '.join(ACTIVATIONS)}"
    require(activation in ACTIVATIONS, constraint, activation=activation)
    if limit is None and activation == "oai":
        limit = OAI_LIMIT
    return glu_op(as_rows(gate, "gate"), as_rows(up, "up"), activation, limit).view(gate.shape)


def relu2(up: Tensor) -> Tensor:
    """Triton implementation of `op.relu2`. Raises Unsupported."""
    require_device(up)
    require_float(up, "up")
    return glu_op(None, as_rows(up, "up"), "relu2", None).view(up.shape)
