"""L2 normalization of rows (Triton).

Reference: `l2_norm` in reference.py.
"""

# M tokens, H heads, R = M H rows, D width

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require, require_float
from .configs import config_for
from .heads import as_heads, row_start

WIDEST = 1024  # a head or a few of them


@triton.jit(do_not_specialize=["num_rows"])
def l2_norm_forward(
    x_ptr,
    y_ptr,
    heads,
    x_stride,
    x_head_stride,
    num_rows,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """L2 norm, forward: y = x / sqrt(sum(x^2) + eps); a program takes ROWS whole rows.

    Bytes per row, b per element: 2 b D.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    x_ptr += row_start(row, heads, x_stride, x_head_stride)
    x = tl.load(x_ptr + col, mask=inside, other=0.0).to(tl.float32)

    y = x * tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) + eps)
    y_ptr += row.to(tl.int64) * width
    tl.store(y_ptr + col, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def l2_norm_backward(
    dy_ptr,
    x_ptr,
    dx_ptr,
    heads,
    x_stride,
    x_head_stride,
    num_rows,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """L2 norm, backward: dx = r (dy - n sum(dy n)) with r = 1 / sqrt(sum(x^2) + eps), n = x r.

    The forward saves only its inputs. Bytes per row, b per element: 3 b D.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    x_ptr += row_start(row, heads, x_stride, x_head_stride)
    x = tl.load(x_ptr + col, mask=inside, other=0.0).to(tl.float32)
    at = row.to(tl.int64) * width + col
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)

    r = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) + eps)
    n = x * r
    dx = r * (dy - n * tl.sum(dy * n, 1, keep_dims=True))
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def forward_launch(arch: str, x_MHD: Tensor, y_RD: Tensor, eps: float) -> Launch:
    """Launch of `l2_norm_forward`."""
    return _launch(l2_norm_forward, arch, {"x_ptr": x_MHD, "y_ptr": y_RD}, x_MHD, eps)


def backward_launch(arch: str, dy_RD: Tensor, x_MHD: Tensor, dx_RD: Tensor, eps: float) -> Launch:
    """Launch of `l2_norm_backward`."""
    pointers = {"dy_ptr": dy_RD, "x_ptr": x_MHD, "dx_ptr": dx_RD}
    return _launch(l2_norm_backward, arch, pointers, x_MHD, eps)


def _launch(
    kernel: Any, arch: str, pointers: dict[str, Tensor], x_MHD: Tensor, eps: float
) -> Launch:
    tokens, heads, width = x_MHD.shape
    config = config_for(arch, "l2_norm", width)
    return Launch(
        kernel=kernel,
        grid=(triton.cdiv(tokens * heads, config.rows),),
        arguments={
            **pointers,
            "heads": heads,
            "x_stride": x_MHD.stride(0),
            "x_head_stride": x_MHD.stride(1),
            "num_rows": tokens * heads,
            "width": width,
            "eps": eps,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::l2_norm", mutates_args=())
def l2_norm_op(x_MHD: Tensor, eps: float) -> Tensor:
    """Custom operator `archfront::l2_norm`, differentiable; the caller checks inputs."""
    y_RD = _l2_norm_output(x_MHD, eps)
    run(forward_launch(arch_of(x_MHD.device), x_MHD, y_RD, eps), x_MHD)
    return y_RD


@l2_norm_op.register_fake
def _l2_norm_output(x_MHD: Tensor, eps: float) -> Tensor:
    tokens, heads, width = x_MHD.shape
    return x_MHD.new_empty(tokens * heads, width)


@torch.library.custom_op("archfront::l2_norm_backward", mutates_args=())
def l2_norm_backward_op(dy_RD: Tensor, x_MHD: Tensor, eps: float) -> Tensor:
    """Gradients of `l2_norm_op`."""
    dx_RD = torch.empty_like(dy_RD)
    run(backward_launch(arch_of(x_MHD.device), dy_RD, x_MHD, dx_RD, eps), x_MHD)
    return dx_RD


@l2_norm_backward_op.register_fake
def _l2_norm_gradient(dy_RD: Tensor, x_MHD: Tensor, eps: float) -> Tensor:
    return torch.empty_like(dy_RD)


def _save_l2_norm(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    x_MHD, ctx.eps = inputs
    ctx.save_for_backward(x_MHD)


def _backward_l2_norm(ctx: Any, dy_RD: Tensor) -> tuple[Tensor, None]:
    (x_MHD,) = ctx.saved_tensors
    # autograd may pass an expanded gradient; the kernel's is contiguous
    return l2_norm_backward_op(dy_RD.contiguous(), x_MHD, ctx.eps).view(x_MHD.shape), None


l2_norm_op.register_autograd(_backward_l2_norm, setup_context=_save_l2_norm)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """Triton implementation of `op.l2_norm`. Raises Unsupported."""
    (x_MHD,) = as_heads(x=x)
    width = x_MHD.shape[2]
    require_device(x)
    require_float(x, "x")
    require(width <= WIDEST, f"one program holds a whole row: width <= {WIDEST}", width=width)
    return l2_norm_op(x_MHD, eps).view(x.shape)
