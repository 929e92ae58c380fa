"""RMS normalization of rows, with or without a residual added first (Triton).

Reference: `rms_norm` and `add_rms_norm` in reference.py.
"""

# M tokens, H heads, R = M H rows, D width, P programs

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import as_rows, needs_gradient, require, require_float, require_like
from .configs import config_for, persistent_programs
from .heads import as_heads, row_start

WIDEST = 16_384  # a whole row stays in the registers of one program,
WIDEST_WITH_GRADIENT = 8192  # where the backward needs four times as many


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    summed_ptr,
    rstd_ptr,
    heads,
    x_stride,
    x_head_stride,
    residual_stride,
    num_rows,
    width,
    eps,
    ADD: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RMS norm, forward: y = x rstd w with rstd = 1 / sqrt(mean(x^2) + eps).

    A program takes ROWS whole rows. With ADD, summed = x + residual, rounded to its dtype, is
    stored and normalized.
    Bytes per row, b per element: 2 b D + 4, with ADD 4 b D + 4; the weight stays in the L2.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)

    x_ptr += row_start(row, heads, x_stride, x_head_stride)
    row = row.to(tl.int64)
    x = tl.load(x_ptr + col, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        residual = tl.load(residual_ptr + row * residual_stride + col, mask=inside, other=0.0)
        summed = (x + residual.to(tl.float32)).to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + row * width + col, summed, mask=inside)
        x = summed.to(tl.float32)
    w = tl.load(weight_ptr + col, mask=col < width, other=0.0).to(tl.float32)
    if ZERO_CENTERED:
        w += 1.0

    rstd = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / width + eps)
    y = x * rstd * w
    tl.store(y_ptr + row * width + col, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rstd_ptr + row, rstd, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def rms_norm_backward(
    dy_ptr,
    dsummed_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    dweight_ptr,
    heads,
    x_stride,
    x_head_stride,
    num_rows,
    rows_per_program,
    width,
    ADD: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RMS norm, backward: dx = rstd (g - n mean(g n)), dw = sum over rows of dy n.

    n = x rstd, g = w dy.

    With ADD, dx also takes dsummed, the gradient of the stored sum.
    A program loops over rows_per_program rows and writes its own partial dw: deterministic.
    Bytes per row, b per element: 3 b D + 4, with ADD 4 b D + 4; 4 D per program for dw.
    """
    program = tl.program_id(0)
    col = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight_ptr + col, mask=col < width, other=0.0).to(tl.float32)
    if ZERO_CENTERED:
        w += 1.0

    dw = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, rows_per_program, ROWS):
        row = program * rows_per_program + start + tl.arange(0, ROWS)[:, None]
        inside = (row < num_rows) & (col < width)
        start_of_x = row_start(row, heads, x_stride, x_head_stride)
        row = row.to(tl.int64)
        x = tl.load(x_ptr + start_of_x + col, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * width + col, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < num_rows, other=0.0)

        n = x * rstd
        g = w * dy
        dx = rstd * (g - n * (tl.sum(g * n, 1, keep_dims=True) / width))
        if ADD:
            dx += tl.load(dsummed_ptr + row * width + col, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * width + col, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += dy * n

    dw = tl.sum(dw, 0, keep_dims=True)
    tl.store(dweight_ptr + program * width + col, dw, mask=col < width)


def forward_launch(
    arch: str,
    x_MHD: Tensor,
    residual_RD: Tensor | None,
    weight_D: Tensor,
    y_RD: Tensor,
    summed_RD: Tensor | None,
    rstd_R: Tensor,
    eps: float,
    zero_centered: bool,
) -> Launch:
    """Launch of `rms_norm_forward`."""
    num_rows, width = y_RD.shape
    config = config_for(arch, "rms_norm_forward", width)
    return Launch(
        kernel=rms_norm_forward,
        grid=(triton.cdiv(num_rows, config.rows),),
        arguments={
            "x_ptr": x_MHD,
            "residual_ptr": residual_RD,
            "weight_ptr": weight_D,
            "y_ptr": y_RD,
            "summed_ptr": summed_RD,
            "rstd_ptr": rstd_R,
            "heads": x_MHD.shape[1],
            "x_stride": x_MHD.stride(0),
            "x_head_stride": x_MHD.stride(1),
            "residual_stride": 0 if residual_RD is None else residual_RD.stride(0),
            "num_rows": num_rows,
            "width": width,
            "eps": eps,
            "ADD": residual_RD is not None,
            "ZERO_CENTERED": zero_centered,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


def partial_sums(arch: str, x_MHD: Tensor) -> Tensor:
    """Buffer for partial gradients of the weight, a row per program of the backward."""
    tokens, heads, width = x_MHD.shape
    config = config_for(arch, "rms_norm_backward", width)
    programs = persistent_programs(arch, config, tokens * heads)
    return x_MHD.new_empty(programs, width, dtype=torch.float32)


def backward_launch(
    arch: str,
    dy_RD: Tensor,
    dsummed_RD: Tensor | None,
    x_MHD: Tensor,
    weight_D: Tensor,
    rstd_R: Tensor,
    dx_RD: Tensor,
    dweight_PD: Tensor,
    zero_centered: bool,
) -> Launch:
    """Launch of `rms_norm_backward`."""
    num_rows, width = dx_RD.shape
    programs = dweight_PD.shape[0]
    config = config_for(arch, "rms_norm_backward", width)
    tiles_per_program = triton.cdiv(num_rows, programs * config.rows)
    return Launch(
        kernel=rms_norm_backward,
        grid=(programs,),
        arguments={
            "dy_ptr": dy_RD,
            "dsummed_ptr": dsummed_RD,
            "x_ptr": x_MHD,
            "weight_ptr": weight_D,
            "rstd_ptr": rstd_R,
            "dx_ptr": dx_RD,
            "dweight_ptr": dweight_PD,
            "heads": x_MHD.shape[1],
            "x_stride": x_MHD.stride(0),
            "x_head_stride": x_MHD.stride(1),
            "num_rows": num_rows,
            "rows_per_program": tiles_per_program * config.rows,
            "width": width,
            "ADD": dsummed_RD is not None,
            "ZERO_CENTERED": zero_centered,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::rms_norm", mutates_args=())
def rms_norm_op(
    x_MHD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::rms_norm`, differentiable; the caller checks inputs."""
    y_RD, rstd_R = _rms_norm_outputs(x_MHD, weight_D, eps, zero_centered)
    arch = arch_of(x_MHD.device)
    run(forward_launch(arch, x_MHD, None, weight_D, y_RD, None, rstd_R, eps, zero_centered), x_MHD)
    return y_RD, rstd_R


@rms_norm_op.register_fake
def _rms_norm_outputs(
    x_MHD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    tokens, heads, width = x_MHD.shape
    y_RD = x_MHD.new_empty(tokens * heads, width)
    return y_RD, y_RD.new_empty(tokens * heads, dtype=torch.float32)


@torch.library.custom_op("archfront::add_rms_norm", mutates_args=())
def add_rms_norm_op(
    x_MHD: Tensor, residual_RD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Custom operator `archfront::add_rms_norm`, differentiable; the caller checks inputs."""
    y_RD, summed_RD, rstd_R = _add_rms_norm_outputs(
        x_MHD, residual_RD, weight_D, eps, zero_centered
    )
    launch = forward_launch(
        arch_of(x_MHD.device),
        x_MHD,
        residual_RD,
        weight_D,
        y_RD,
        summed_RD,
        rstd_R,
        eps,
        zero_centered,
    )
    run(launch, x_MHD)
    return y_RD, summed_RD, rstd_R


@add_rms_norm_op.register_fake
def _add_rms_norm_outputs(
    x_MHD: Tensor, residual_RD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y_RD, rstd_R = _rms_norm_outputs(x_MHD, weight_D, eps, zero_centered)
    return y_RD, torch.empty_like(y_RD), rstd_R


@torch.library.custom_op("archfront::rms_norm_backward", mutates_args=())
def rms_norm_backward_op(
    dy_RD: Tensor,
    dsummed_RD: Tensor | None,
    x_MHD: Tensor,
    weight_D: Tensor,
    rstd_R: Tensor,
    zero_centered: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `rms_norm_op`."""
    arch = arch_of(x_MHD.device)
    dx_RD, dweight_PD = torch.empty_like(dy_RD), partial_sums(arch, x_MHD)
    launch = backward_launch(
        arch, dy_RD, dsummed_RD, x_MHD, weight_D, rstd_R, dx_RD, dweight_PD, zero_centered
    )
    run(launch, x_MHD)
    return dx_RD, dweight_PD.sum(0).to(weight_D.dtype)


@rms_norm_backward_op.register_fake
def _rms_norm_gradients(
    dy_RD: Tensor,
    dsummed_RD: Tensor | None,
    x_MHD: Tensor,
    weight_D: Tensor,
    rstd_R: Tensor,
    zero_centered: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dy_RD), torch.empty_like(weight_D)


def _save_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_MHD, weight_D, _, ctx.zero_centered = inputs
    ctx.save_for_backward(x_MHD, weight_D, output[1])


def _save_add_rms_norm(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x_MHD, _, weight_D, _, ctx.zero_centered = inputs
    ctx.save_for_backward(output[1].view(x_MHD.shape), weight_D, output[2])


def _backward_rms_norm(ctx: Any, dy_RD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    # autograd may pass an expanded gradient; the kernel's are contiguous, here and below
    x_MHD = ctx.saved_tensors[0]
    dx_RD, dweight_D = rms_norm_backward_op(
        dy_RD.contiguous(), None, *ctx.saved_tensors, ctx.zero_centered
    )
    return dx_RD.view(x_MHD.shape), dweight_D, None, None


def _backward_add_rms_norm(
    ctx: Any, dy_RD: Tensor, dsummed_RD: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    x_MHD = ctx.saved_tensors[0]
    dx_RD, dweight_D = rms_norm_backward_op(
        dy_RD.contiguous(), dsummed_RD.contiguous(), *ctx.saved_tensors, ctx.zero_centered
    )
    return dx_RD.view(x_MHD.shape), dx_RD, dweight_D, None, None


rms_norm_op.register_autograd(_backward_rms_norm, setup_context=_save_rms_norm)
add_rms_norm_op.register_autograd(_backward_add_rms_norm, setup_context=_save_add_rms_norm)


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool = False) -> Tensor:
    """Triton implementation of `op.rms_norm`. Raises Unsupported."""
    (x_MHD,) = as_heads(x=x)
    _require(x_MHD, weight, needs_gradient(x, weight))
    y_RD, _ = rms_norm_op(x_MHD, weight, eps, zero_centered)
    return y_RD.view(x.shape)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, zero_centered: bool = False
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.add_rms_norm`. Raises Unsupported."""
    x_MHD = as_rows(x, "x").unsqueeze(1)
    _require(x_MHD, weight, needs_gradient(x, residual, weight))
    require_like(residual, x, "residual")
    residual_RD = as_rows(residual, "residual")
    y_RD, summed_RD, _ = add_rms_norm_op(x_MHD, residual_RD, weight, eps, zero_centered)
    return y_RD.view(x.shape), summed_RD.view(x.shape)


def _require(x_MHD: Tensor, weight: Tensor, gradient: bool) -> None:
    width = x_MHD.shape[2]
    widest = WIDEST_WITH_GRADIENT if gradient else WIDEST
    require_device(x_MHD)
    require_float(x_MHD, "x")
    constraint = f"one program holds a whole row: width <= {widest}"
    require(width <= widest, constraint, width=width, gradient=gradient)
    require_weight(weight, width, x_MHD)


def require_weight(weight: Tensor, width: int, x: Tensor) -> None:
    """Raise Unsupported unless the weight is [width], contiguous, on x's device."""
    require_float(weight, "weight")
    require(
        weight.device == x.device and weight.shape == (width,) and weight.is_contiguous(),
        f"weight must be contiguous, of shape ({width},), on {x.device}",
        shape=tuple(weight.shape),
        strides=weight.stride(),
        device=weight.device,
    )
