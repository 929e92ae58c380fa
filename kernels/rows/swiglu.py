"""SwiGLU over rows in Triton: silu(gate) * up.

The meaning is `swiglu` in reference.py. Shapes: M rows, F width of the hidden layer.
"""

# Triton takes an annotation on a kernel's argument for its type at run time.
# pyright: reportMissingParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..laws import as_rows, require_float, require_like
from .configs import config_for

WIDEST_TILE = 1024  # no column needs another: a wider row is cut


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_forward(
    gate_ptr,
    up_ptr,
    y_ptr,
    gate_stride,
    up_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = gate * sigmoid(gate) * up; a program takes a tile of ROWS x BLOCK.

    Bytes per row, b to an element: 3 b F.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    gate = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)

    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * width + col, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_backward(
    dy_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    gate_stride,
    up_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dgate = dy * up * s * (1 + gate * (1 - s)), dup = dy * gate * s, with s = sigmoid(gate).

    Nothing is kept from the forward but its inputs. Bytes per row, b to an element: 5 b F.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    dy = tl.load(dy_ptr + row * width + col, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)

    s = tl.sigmoid(gate)
    dgate = dy * up * s * (1.0 + gate * (1.0 - s))
    dup = dy * gate * s
    tl.store(dgate_ptr + row * width + col, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + row * width + col, dup.to(dup_ptr.dtype.element_ty), mask=inside)


def forward_launch(arch: str, gate_MF: Tensor, up_MF: Tensor, y_MF: Tensor) -> Launch:
    num_rows, width = gate_MF.shape
    config = config_for(arch, "swiglu", min(width, WIDEST_TILE))
    return Launch(
        kernel=swiglu_forward,
        grid=(triton.cdiv(num_rows, config.rows), triton.cdiv(width, config.block)),
        arguments={
            "gate_ptr": gate_MF,
            "up_ptr": up_MF,
            "y_ptr": y_MF,
            "gate_stride": gate_MF.stride(0),
            "up_stride": up_MF.stride(0),
            "num_rows": num_rows,
            "width": width,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


def backward_launch(
    arch: str, dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor, dgate_MF: Tensor, dup_MF: Tensor
) -> Launch:
    num_rows, width = gate_MF.shape
    config = config_for(arch, "swiglu", min(width, WIDEST_TILE))
    return Launch(
        kernel=swiglu_backward,
        grid=(triton.cdiv(num_rows, config.rows), triton.cdiv(width, config.block)),
        arguments={
            "dy_ptr": dy_MF,
            "gate_ptr": gate_MF,
            "up_ptr": up_MF,
            "dgate_ptr": dgate_MF,
            "dup_ptr": dup_MF,
            "gate_stride": gate_MF.stride(0),
            "up_stride": up_MF.stride(0),
            "num_rows": num_rows,
            "width": width,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::swiglu", mutates_args=())
def swiglu_op(gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    y_MF = _swiglu_output(gate_MF, up_MF)
    run(forward_launch(arch_of(gate_MF.device), gate_MF, up_MF, y_MF), gate_MF)
    return y_MF


@swiglu_op.register_fake
def _swiglu_output(gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    return gate_MF.new_empty(gate_MF.shape)


@torch.library.custom_op("archfront::swiglu_backward", mutates_args=())
def swiglu_backward_op(dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor]:
    gradients = _swiglu_gradients(dy_MF, gate_MF, up_MF)
    run(backward_launch(arch_of(gate_MF.device), dy_MF, gate_MF, up_MF, *gradients), gate_MF)
    return gradients


@swiglu_backward_op.register_fake
def _swiglu_gradients(dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor]:
    return gate_MF.new_empty(gate_MF.shape), up_MF.new_empty(up_MF.shape)


def _save_swiglu(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_swiglu(ctx: Any, dy_MF: Tensor) -> tuple[Tensor, Tensor]:
    # autograd may hand over an expanded gradient; the kernel's is contiguous
    return swiglu_backward_op(dy_MF.contiguous(), *ctx.saved_tensors)


swiglu_op.register_autograd(_backward_swiglu, setup_context=_save_swiglu)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    require_device(gate)
    require_float(gate, "gate")
    require_like(up, gate, "up")
    return swiglu_op(as_rows(gate, "gate"), as_rows(up, "up")).view(gate.shape)
