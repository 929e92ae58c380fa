"""Gated RMS normalization of rows, gate before or after the norm (Triton).

Reference: `gated_rms_norm` in reference.py.
"""

# M tokens, H heads, R = M H rows, G groups per row, N = G D its width, P programs of a group

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require, require_float, require_like
from .configs import config_for, persistent_programs
from .heads import as_heads, row_start
from .norm import require_weight

WIDEST = 8192  # of a group, which stays in the registers of one program


@triton.jit(do_not_specialize=["num_rows"])
def gated_rms_norm_forward(
    x_ptr,
    gate_ptr,
    weight_ptr,
    y_ptr,
    heads,
    x_stride,
    x_head_stride,
    gate_stride,
    gate_head_stride,
    num_rows,
    width,
    eps,
    SILU: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gated RMS norm, forward: y = u r w a(z), r = 1 / sqrt(mean(u^2) + eps), u = x.

    With GATE_FIRST y = u r w, u = x a(z). a is silu or sigmoid. A program takes one group of ROWS
    rows.
    Bytes per row, b per element:
    3 b N.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    group = tl.program_id(1) * width
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (col < width)
    x_ptr += row_start(row, heads, x_stride, x_head_stride) + group
    gate_ptr += row_start(row, heads, gate_stride, gate_head_stride) + group
    u = tl.load(x_ptr + col, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(gate_ptr + col, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight_ptr + group + col, mask=col < width, other=0.0).to(tl.float32)

    a = tl.sigmoid(z)
    if SILU:
        a *= z
    if GATE_FIRST:
        u *= a
    y = u * tl.rsqrt(tl.sum(u * u, 1, keep_dims=True) / width + eps) * w
    if not GATE_FIRST:
        y *= a
    y_ptr += row.to(tl.int64) * width * tl.num_programs(1) + group
    tl.store(y_ptr + col, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def operands(
    x_ptr,
    gate_ptr,
    dy_ptr,
    inside,
    SILU: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    EVICT,
):
    """(x, a, da/dz, u, dy) of the equations of the backward."""
    x = tl.load(x_ptr, mask=inside, other=0.0, eviction_policy=EVICT).to(tl.float32)
    z = tl.load(gate_ptr, mask=inside, other=0.0, eviction_policy=EVICT).to(tl.float32)
    dy = tl.load(dy_ptr, mask=inside, other=0.0, eviction_policy=EVICT).to(tl.float32)
    a = tl.sigmoid(z)
    slope = a * (1.0 - a)
    if SILU:
        slope = a + z * slope
        a *= z
    u = x * a if GATE_FIRST else x
    return x, a, slope, u, dy


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def gated_rms_norm_backward(
    dy_ptr,
    x_ptr,
    gate_ptr,
    weight_ptr,
    dx_ptr,
    dgate_ptr,
    dweight_ptr,
    heads,
    x_stride,
    x_head_stride,
    gate_stride,
    gate_head_stride,
    num_rows,
    rows_per_program,
    width,
    eps,
    SILU: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gated RMS norm, backward: du = r (dn - n mean(dn n)), n = u r; da is the gradient of a(z).

    dn = w * a * dy, da = w * n * dy, dx = du, dw = sum over rows of dy * n * a; with GATE_FIRST
    dn = w * dy, da = x * du, dx = a * du, dw = sum over rows of dy * n.
    A program loops over its rows of one group and writes its own partial dw. The forward saves
    only its inputs. A row is read again after its sums, from the cache, since its tiles
    would not all stay in registers. Bytes per row, b per element: 5 b N; 4 N per program for dw.
    """
    program = tl.program_id(0)
    group = tl.program_id(1) * width
    entries = width * tl.num_programs(1)
    col = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight_ptr + group + col, mask=col < width, other=0.0).to(tl.float32)

    dw = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, rows_per_program, ROWS):
        row = program * rows_per_program + start + tl.arange(0, ROWS)[:, None]
        inside = (row < num_rows) & (col < width)
        x_at = x_ptr + row_start(row, heads, x_stride, x_head_stride) + group + col
        gate_at = gate_ptr + row_start(row, heads, gate_stride, gate_head_stride) + group + col
        start_of_row = row.to(tl.int64) * entries + group
        dy_at = dy_ptr + start_of_row + col

        _, a, _, u, dy = operands(x_at, gate_at, dy_at, inside, SILU, GATE_FIRST, "evict_last")
        dn = w * dy if GATE_FIRST else w * a * dy
        square, along = tl.sum(u * u, 1, keep_dims=True), tl.sum(dn * u, 1, keep_dims=True)
        r = tl.rsqrt(square / width + eps)
        x, a, slope, u, dy = operands(x_at, gate_at, dy_at, inside, SILU, GATE_FIRST, "evict_first")
        dn = w * dy if GATE_FIRST else w * a * dy
        n = u * r
        du = r * (dn - n * (along * r / width))
        if GATE_FIRST:
            dx, da = a * du, x * du
            dw += dy * n
        else:
            dx, da = du, w * n * dy
            dw += dy * n * a
        dx_at, dgate_at = dx_ptr + start_of_row + col, dgate_ptr + start_of_row + col
        tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dgate_at, (da * slope).to(dgate_ptr.dtype.element_ty), mask=inside)

    dw = tl.sum(dw, 0, keep_dims=True)
    tl.store(dweight_ptr + program * entries + group + col, dw, mask=col < width)


def forward_launch(
    arch: str,
    x_MHN: Tensor,
    gate_MHN: Tensor,
    weight_N: Tensor,
    y_RN: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    groups: int,
) -> Launch:
    """Launch of `gated_rms_norm_forward`."""
    num_rows, entries = y_RN.shape
    config = config_for(arch, "gated_rms_norm_forward", entries // groups)
    return Launch(
        kernel=gated_rms_norm_forward,
        grid=(triton.cdiv(num_rows, config.rows), groups),
        arguments={
            "x_ptr": x_MHN,
            "gate_ptr": gate_MHN,
            "weight_ptr": weight_N,
            "y_ptr": y_RN,
            "heads": x_MHN.shape[1],
            "x_stride": x_MHN.stride(0),
            "x_head_stride": x_MHN.stride(1),
            "gate_stride": gate_MHN.stride(0),
            "gate_head_stride": gate_MHN.stride(1),
            "num_rows": num_rows,
            "width": entries // groups,
            "eps": eps,
            "SILU": activation == "silu",
            "GATE_FIRST": gate_first,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


def partial_sums(arch: str, x_MHN: Tensor, groups: int) -> Tensor:
    """Buffer for partial gradients of the weight, a row per program of a group."""
    tokens, heads, entries = x_MHN.shape
    config = config_for(arch, "gated_rms_norm_backward", entries // groups)
    programs = triton.cdiv(persistent_programs(arch, config, tokens * heads * groups), groups)
    return x_MHN.new_empty(programs, entries, dtype=torch.float32)


def backward_launch(
    arch: str,
    dy_RN: Tensor,
    x_MHN: Tensor,
    gate_MHN: Tensor,
    weight_N: Tensor,
    dx_RN: Tensor,
    dgate_RN: Tensor,
    dweight_PN: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    groups: int,
) -> Launch:
    """Launch of `gated_rms_norm_backward`."""
    num_rows, entries = dx_RN.shape
    programs = dweight_PN.shape[0]
    config = config_for(arch, "gated_rms_norm_backward", entries // groups)
    tiles_per_program = triton.cdiv(num_rows, programs * config.rows)
    return Launch(
        kernel=gated_rms_norm_backward,
        grid=(programs, groups),
        arguments={
            "dy_ptr": dy_RN,
            "x_ptr": x_MHN,
            "gate_ptr": gate_MHN,
            "weight_ptr": weight_N,
            "dx_ptr": dx_RN,
            "dgate_ptr": dgate_RN,
            "dweight_ptr": dweight_PN,
            "heads": x_MHN.shape[1],
            "x_stride": x_MHN.stride(0),
            "x_head_stride": x_MHN.stride(1),
            "gate_stride": gate_MHN.stride(0),
            "gate_head_stride": gate_MHN.stride(1),
            "num_rows": num_rows,
            "rows_per_program": tiles_per_program * config.rows,
            "width": entries // groups,
            "eps": eps,
            "SILU": activation == "silu",
            "GATE_FIRST": gate_first,
            "ROWS": config.rows,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::gated_rms_norm", mutates_args=())
def gated_rms_norm_op(
    x_MHN: Tensor,
    gate_MHN: Tensor,
    weight_N: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    groups: int,
) -> Tensor:
    """Custom operator `archfront::gated_rms_norm`, differentiable; the caller checks inputs."""
    settings = eps, activation, gate_first, groups
    y_RN = _gated_rms_norm_output(x_MHN, gate_MHN, weight_N, *settings)
    arch = arch_of(x_MHN.device)
    run(forward_launch(arch, x_MHN, gate_MHN, weight_N, y_RN, *settings), x_MHN)
    return y_RN


@gated_rms_norm_op.register_fake
def _gated_rms_norm_output(
    x_MHN: Tensor,
    gate_MHN: Tensor,
    weight_N: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    groups: int,
) -> Tensor:
    tokens, heads, entries = x_MHN.shape
    return x_MHN.new_empty(tokens * heads, entries)


@torch.library.custom_op("archfront::gated_rms_norm_backward", mutates_args=())
def gated_rms_norm_backward_op(
    dy_RN: Tensor,
    x_MHN: Tensor,
    gate_MHN: Tensor,
    weight_N: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gated_rms_norm_op`."""
    arch = arch_of(x_MHN.device)
    dx_RN, dgate_RN = torch.empty_like(dy_RN), torch.empty_like(dy_RN)
    dweight_PN = partial_sums(arch, x_MHN, groups)
    inputs, outputs = (dy_RN, x_MHN, gate_MHN, weight_N), (dx_RN, dgate_RN, dweight_PN)
    settings = eps, activation, gate_first, groups
    run(backward_launch(arch, *inputs, *outputs, *settings), x_MHN)
    return dx_RN, dgate_RN, dweight_PN.sum(0).to(weight_N.dtype)


@gated_rms_norm_backward_op.register_fake
def _gated_rms_norm_gradients(
    dy_RN: Tensor,
    x_MHN: Tensor,
    gate_MHN: Tensor,
    weight_N: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dy_RN), torch.empty_like(dy_RN), torch.empty_like(weight_N)


def _save_gated_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_MHN, gate_MHN, weight_N, *ctx.settings = inputs
    ctx.save_for_backward(x_MHN, gate_MHN, weight_N)


def _backward_gated_rms_norm(ctx: Any, dy_RN: Tensor) -> tuple[Tensor | None, ...]:
    shape = ctx.saved_tensors[0].shape
    # autograd may pass an expanded gradient; the kernel's is contiguous
    dx_RN, dgate_RN, dweight_N = gated_rms_norm_backward_op(
        dy_RN.contiguous(), *ctx.saved_tensors, *ctx.settings
    )
    return dx_RN.view(shape), dgate_RN.view(shape), dweight_N, None, None, None, None


gated_rms_norm_op.register_autograd(_backward_gated_rms_norm, setup_context=_save_gated_rms_norm)


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    *,
    activation: Literal["silu", "sigmoid"],
    gate_first: bool,
    groups: int,
) -> Tensor:
    """Triton implementation of `op.gated_rms_norm`. Raises Unsupported."""
    x_MHN, gate_MHN = as_heads(x=x, gate=gate)
    entries = x_MHN.shape[2]
    require_device(x)
    require_float(x, "x")
    require_like(gate, x, "gate")
    require_weight(weight, entries, x)
    require(
        groups >= 1 and entries % groups == 0,
        "groups must divide the last dimension",
        groups=groups,
        width=entries,
    )
    require(
        entries <= groups * WIDEST,
        f"one program holds a whole group: width / groups <= {WIDEST}",
        width=entries,
        groups=groups,
    )
    y_RN = gated_rms_norm_op(x_MHN, gate_MHN, weight, eps, activation, gate_first, groups)
    return y_RN.view(x.shape)
