"""RMS normalisation of rows in Triton, with or without a residual added first.

The meaning is `rms_norm` and `add_rms_norm` in reference.py. Shapes: M rows, D width, P programs.
"""

# Triton takes an annotation on a kernel's argument for its type at run time.
# pyright: reportMissingParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import ARCHS, arch_of
from ..launch import Launch, require_device, run
from ..laws import as_rows, needs_gradient, require, require_float, require_like
from .configs import config_for

WIDEST = 16_384  # a whole row stays in the registers of one program,
WIDEST_WITH_GRADIENT = 8192  # where the backward needs four times as many
PROGRAMS_PER_MULTIPROCESSOR = 2  # of the backward: one loads while the other reduces


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    summed_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    num_rows,
    width,
    eps,
    ADD: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps); a program takes ROWS whole rows.

    With ADD, summed = x + residual, as rounded for the store, takes the place of x.
    Bytes per row, b to an element: 2 b D + 4, with ADD 4 b D + 4; the weight stays in the L2.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)

    x = tl.load(x_ptr + row * x_stride + col, mask=inside, other=0.0).to(tl.float32)
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
    x_stride,
    num_rows,
    rows_per_program,
    width,
    ADD: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = rstd * (g - n * mean(g * n)), dw = sum over rows of dy * n; n = x * rstd, g = w * dy.

    With ADD, dx also takes dsummed, the gradient that reaches the sum past the norm.
    A program walks rows_per_program rows and leaves its own partial dw, so no order is left to
    chance. Bytes per row, b to an element: 3 b D + 4, with ADD 4 b D + 4; 4 D per program for dw.
    """
    program = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight_ptr + col, mask=col < width, other=0.0).to(tl.float32)
    if ZERO_CENTERED:
        w += 1.0

    dw = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, rows_per_program, ROWS):
        row = program * rows_per_program + start + tl.arange(0, ROWS)[:, None]
        inside = (row < num_rows) & (col < width)
        x = tl.load(x_ptr + row * x_stride + col, mask=inside, other=0.0).to(tl.float32)
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


def backward_programs(arch: str, num_rows: int) -> int:
    return max(1, min(num_rows, PROGRAMS_PER_MULTIPROCESSOR * ARCHS[arch].multiprocessors))


def forward_launch(
    arch: str,
    x_MD: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    y_MD: Tensor,
    summed_MD: Tensor | None,
    rstd_M: Tensor,
    eps: float,
    zero_centered: bool,
) -> Launch:
    num_rows, width = x_MD.shape
    config = config_for(arch, "rms_norm_forward", width)
    return Launch(
        kernel=rms_norm_forward,
        grid=(triton.cdiv(num_rows, config.rows),),
        arguments={
            "x_ptr": x_MD,
            "residual_ptr": residual_MD,
            "weight_ptr": weight_D,
            "y_ptr": y_MD,
            "summed_ptr": summed_MD,
            "rstd_ptr": rstd_M,
            "x_stride": x_MD.stride(0),
            "residual_stride": 0 if residual_MD is None else residual_MD.stride(0),
            "num_rows": num_rows,
            "width": width,
            "eps": eps,
            "ADD": residual_MD is not None,
            "ZERO_CENTERED": zero_centered,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


def backward_launch(
    arch: str,
    dy_MD: Tensor,
    dsummed_MD: Tensor | None,
    x_MD: Tensor,
    weight_D: Tensor,
    rstd_M: Tensor,
    dx_MD: Tensor,
    dweight_PD: Tensor,
    zero_centered: bool,
) -> Launch:
    num_rows, width = x_MD.shape
    programs = dweight_PD.shape[0]
    config = config_for(arch, "rms_norm_backward", width)
    tiles_per_program = triton.cdiv(num_rows, programs * config.rows)
    return Launch(
        kernel=rms_norm_backward,
        grid=(programs,),
        arguments={
            "dy_ptr": dy_MD,
            "dsummed_ptr": dsummed_MD,
            "x_ptr": x_MD,
            "weight_ptr": weight_D,
            "rstd_ptr": rstd_M,
            "dx_ptr": dx_MD,
            "dweight_ptr": dweight_PD,
            "x_stride": x_MD.stride(0),
            "num_rows": num_rows,
            "rows_per_program": tiles_per_program * config.rows,
            "width": width,
            "ADD": dsummed_MD is not None,
            "ZERO_CENTERED": zero_centered,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::rms_norm", mutates_args=())
def rms_norm_op(
    x_MD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    y_MD, rstd_M = _rms_norm_outputs(x_MD, weight_D, eps, zero_centered)
    arch = arch_of(x_MD.device)
    run(forward_launch(arch, x_MD, None, weight_D, y_MD, None, rstd_M, eps, zero_centered), x_MD)
    return y_MD, rstd_M


@rms_norm_op.register_fake
def _rms_norm_outputs(
    x_MD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    return x_MD.new_empty(x_MD.shape), x_MD.new_empty(x_MD.shape[:1], dtype=torch.float32)


@torch.library.custom_op("archfront::add_rms_norm", mutates_args=())
def add_rms_norm_op(
    x_MD: Tensor, residual_MD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y_MD, summed_MD, rstd_M = _add_rms_norm_outputs(x_MD, residual_MD, weight_D, eps, zero_centered)
    arch = arch_of(x_MD.device)
    launch = forward_launch(
        arch, x_MD, residual_MD, weight_D, y_MD, summed_MD, rstd_M, eps, zero_centered
    )
    run(launch, x_MD)
    return y_MD, summed_MD, rstd_M


@add_rms_norm_op.register_fake
def _add_rms_norm_outputs(
    x_MD: Tensor, residual_MD: Tensor, weight_D: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y_MD, rstd_M = _rms_norm_outputs(x_MD, weight_D, eps, zero_centered)
    return y_MD, x_MD.new_empty(x_MD.shape), rstd_M


@torch.library.custom_op("archfront::rms_norm_backward", mutates_args=())
def rms_norm_backward_op(
    dy_MD: Tensor,
    dsummed_MD: Tensor | None,
    x_MD: Tensor,
    weight_D: Tensor,
    rstd_M: Tensor,
    zero_centered: bool,
) -> tuple[Tensor, Tensor]:
    num_rows, width = x_MD.shape
    arch = arch_of(x_MD.device)
    programs = backward_programs(arch, num_rows)
    dx_MD = x_MD.new_empty(x_MD.shape)
    dweight_PD = x_MD.new_empty(programs, width, dtype=torch.float32)
    launch = backward_launch(
        arch, dy_MD, dsummed_MD, x_MD, weight_D, rstd_M, dx_MD, dweight_PD, zero_centered
    )
    run(launch, x_MD)
    return dx_MD, dweight_PD.sum(0).to(weight_D.dtype)


@rms_norm_backward_op.register_fake
def _rms_norm_gradients(
    dy_MD: Tensor,
    dsummed_MD: Tensor | None,
    x_MD: Tensor,
    weight_D: Tensor,
    rstd_M: Tensor,
    zero_centered: bool,
) -> tuple[Tensor, Tensor]:
    return x_MD.new_empty(x_MD.shape), torch.empty_like(weight_D)


def _save_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_MD, weight_D, _, ctx.zero_centered = inputs
    ctx.save_for_backward(x_MD, weight_D, output[1])


def _save_add_rms_norm(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, _, weight_D, _, ctx.zero_centered = inputs
    ctx.save_for_backward(output[1], weight_D, output[2])


def _backward_rms_norm(ctx: Any, dy_MD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    # autograd may hand over an expanded gradient; the kernel's are contiguous, here and below
    gradients = rms_norm_backward_op(
        dy_MD.contiguous(), None, *ctx.saved_tensors, ctx.zero_centered
    )
    return *gradients, None, None


def _backward_add_rms_norm(
    ctx: Any, dy_MD: Tensor, dsummed_MD: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    dx_MD, dweight_D = rms_norm_backward_op(
        dy_MD.contiguous(), dsummed_MD.contiguous(), *ctx.saved_tensors, ctx.zero_centered
    )
    return dx_MD, dx_MD, dweight_D, None, None


rms_norm_op.register_autograd(_backward_rms_norm, setup_context=_save_rms_norm)
add_rms_norm_op.register_autograd(_backward_add_rms_norm, setup_context=_save_add_rms_norm)


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool = False) -> Tensor:
    x_MD = as_rows(x, "x")
    _require(x_MD, weight, needs_gradient(x, weight))
    y_MD, _ = rms_norm_op(x_MD, weight, eps, zero_centered)
    return y_MD.view(x.shape)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, zero_centered: bool = False
) -> tuple[Tensor, Tensor]:
    x_MD = as_rows(x, "x")
    _require(x_MD, weight, needs_gradient(x, residual, weight))
    require_like(residual, x, "residual")
    residual_MD = as_rows(residual, "residual")
    y_MD, summed_MD, _ = add_rms_norm_op(x_MD, residual_MD, weight, eps, zero_centered)
    return y_MD.view(x.shape), summed_MD.view(x.shape)


def _require(x_MD: Tensor, weight: Tensor, gradient: bool) -> None:
    width = x_MD.shape[1]
    widest = WIDEST_WITH_GRADIENT if gradient else WIDEST
    require_device(x_MD)
    require_float(x_MD, "x")
    law = f"one program holds a whole row: width <= {widest}"
    require(width <= widest, law, width=width, gradient=gradient)
    require_float(weight, "weight")
    require(
        weight.device == x_MD.device and weight.shape == (width,) and weight.is_contiguous(),
        f"weight must be contiguous, of shape ({width},), on {x_MD.device}",
        shape=tuple(weight.shape),
        strides=weight.stride(),
        device=weight.device,
    )
