"""First-order scan per channel, `channel_scan` of reference.py (Triton)."""

# B batch, T tokens, N channels

# Triton reads an annotation on a kernel's argument as its type at run time; the tuples that grow
# as it unrolls have no type outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of, require_arch
from ..launch import Launch, require_device, run
from ..requirements import require
from .configs import CHANNEL_SCANS
from .requirements import require_rows, require_whole, row_stride

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def begins(segment_ids_ptr, row, first, end):
    """Whether a token starts a segment, so that the state before it counts as zero.

    `row` indexes the tokens of all batch rows; those of its own are first ... end - 1.
    """
    inside = (row > first) & (row < end)
    own = tl.load(segment_ids_ptr + row, mask=inside, other=0)
    return own != tl.load(segment_ids_ptr + row - 1, mask=inside, other=0)


@triton.jit(do_not_specialize=["tokens"])
def scan_forward(
    x_ptr,
    decay_ptr,
    segment_ids_ptr,
    initial_ptr,
    h_ptr,
    final_ptr,
    x_stride,
    decay_stride,
    tokens,
    width,
    INITIAL: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    BN: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Channel scan, forward: h_t = e^{g_t} h_{t-1} + x_t.

    A program loops over the tokens of BN channels, UNROLL of them loaded ahead. Bytes per token and
    channel, b per element: 2 b + 4.
    """
    b = tl.program_id(0).to(tl.int64)
    first, end = b * tokens, (b + 1) * tokens
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    h = tl.zeros([BN], tl.float32)
    if INITIAL:
        h = tl.load(initial_ptr + b * width + n, mask=n < width, other=0.0)
    for start in range(0, tokens, UNROLL):
        x, g = (), ()
        for u in tl.static_range(UNROLL):
            row = first + start + u
            inside = n < tl.where(row < end, width, 0)
            x += (tl.load(x_ptr + row * x_stride + n, mask=inside, other=0.0),)
            g += (tl.load(decay_ptr + row * decay_stride + n, mask=inside, other=0.0),)
        for u in tl.static_range(UNROLL):
            row = first + start + u
            if USE_SEGMENT_IDS:
                h = tl.where(begins(segment_ids_ptr, row, first, end), 0.0, h)
            h = tl.exp2(g[u].to(tl.float32) * LOG2_E) * h + x[u].to(tl.float32)
            inside = n < tl.where(row < end, width, 0)
            tl.store(h_ptr + row * width + n, h.to(h_ptr.dtype.element_ty), mask=inside)
    tl.store(final_ptr + b * width + n, h, mask=n < width)


@triton.jit(do_not_specialize=["tokens"])
def scan_backward(
    dh_ptr,
    dfinal_ptr,
    h_ptr,
    decay_ptr,
    segment_ids_ptr,
    initial_ptr,
    dx_ptr,
    ddecay_ptr,
    dinitial_ptr,
    decay_stride,
    tokens,
    width,
    INITIAL: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    BN: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Channel scan, backward: dx_t = dh_t + e^{g_{t+1}} dx_{t+1}, dg_t = dx_t e^{g_t} h_{t-1}.

    Bytes per token and channel, b per element: 3 b + 8.
    """
    b = tl.program_id(0).to(tl.int64)
    first, end = b * tokens, (b + 1) * tokens
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    carried = tl.load(dfinal_ptr + b * width + n, mask=n < width, other=0.0)
    for back in range(0, tokens, UNROLL):
        dh, g, before = (), (), ()
        for u in tl.static_range(UNROLL):
            row = end - 1 - back - u
            inside = n < tl.where(row >= first, width, 0)
            dh += (tl.load(dh_ptr + row * width + n, mask=inside, other=0.0),)
            g += (tl.load(decay_ptr + row * decay_stride + n, mask=inside, other=0.0),)
            has_past = n < tl.where(row > first, width, 0)
            h = tl.load(h_ptr + (row - 1) * width + n, mask=has_past, other=0.0).to(tl.float32)
            if INITIAL:
                is_first = n < tl.where(row == first, width, 0)
                h += tl.load(initial_ptr + b * width + n, mask=is_first, other=0.0)
            before += (h,)
        for u in tl.static_range(UNROLL):
            row = end - 1 - back - u
            inside = n < tl.where(row >= first, width, 0)
            at = row * width + n
            dx = dh[u].to(tl.float32) + carried
            kept = tl.exp2(g[u].to(tl.float32) * LOG2_E)
            if USE_SEGMENT_IDS:
                kept = tl.where(begins(segment_ids_ptr, row, first, end), 0.0, kept)
            carried = tl.where(row >= first, kept * dx, carried)
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            dg = carried * before[u]
            tl.store(ddecay_ptr + at, dg.to(ddecay_ptr.dtype.element_ty), mask=inside)
    tl.store(dinitial_ptr + b * width + n, carried, mask=n < width)


def forward_launch(
    arch: str,
    x_BTN: Tensor,
    decay_BTN: Tensor,
    initial_BN: Tensor | None,
    segment_ids_BT: Tensor | None,
    h_BTN: Tensor,
    final_BN: Tensor,
) -> Launch:
    """Launch of `scan_forward`."""
    require_arch(arch)
    B, T, N = x_BTN.shape
    config = CHANNEL_SCANS["channels"]
    return Launch(
        kernel=scan_forward,
        grid=(B, triton.cdiv(N, config.tiles["BN"])),
        arguments={
            "x_ptr": x_BTN,
            "decay_ptr": decay_BTN,
            "segment_ids_ptr": segment_ids_BT,
            "initial_ptr": initial_BN,
            "h_ptr": h_BTN,
            "final_ptr": final_BN,
            "x_stride": row_stride(x_BTN),
            "decay_stride": row_stride(decay_BTN),
            "tokens": T,
            "width": N,
            "INITIAL": initial_BN is not None,
            "USE_SEGMENT_IDS": segment_ids_BT is not None,
            **config.tiles,
        },
        warps=config.warps,
    )


def backward_launch(
    arch: str,
    dh_BTN: Tensor,
    dfinal_BN: Tensor,
    h_BTN: Tensor,
    decay_BTN: Tensor,
    initial_BN: Tensor | None,
    segment_ids_BT: Tensor | None,
    dx_BTN: Tensor,
    ddecay_BTN: Tensor,
    dinitial_BN: Tensor,
) -> Launch:
    """Launch of `scan_backward`."""
    require_arch(arch)
    B, T, N = dh_BTN.shape
    config = CHANNEL_SCANS["channels_backward"]
    return Launch(
        kernel=scan_backward,
        grid=(B, triton.cdiv(N, config.tiles["BN"])),
        arguments={
            "dh_ptr": dh_BTN,
            "dfinal_ptr": dfinal_BN,
            "h_ptr": h_BTN,
            "decay_ptr": decay_BTN,
            "segment_ids_ptr": segment_ids_BT,
            "initial_ptr": initial_BN,
            "dx_ptr": dx_BTN,
            "ddecay_ptr": ddecay_BTN,
            "dinitial_ptr": dinitial_BN,
            "decay_stride": row_stride(decay_BTN),
            "tokens": T,
            "width": N,
            "INITIAL": initial_BN is not None,
            "USE_SEGMENT_IDS": segment_ids_BT is not None,
            **config.tiles,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::channel_scan", mutates_args=())
def scan_op(
    x_BTN: Tensor, decay_BTN: Tensor, initial_BN: Tensor | None, segment_ids_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::channel_scan`, differentiable; the caller checks inputs."""
    inputs = (x_BTN, decay_BTN, initial_BN, segment_ids_BT)
    h_BTN, final_BN = _scanned(*inputs)
    run(forward_launch(arch_of(x_BTN.device), *inputs, h_BTN, final_BN), x_BTN)
    return h_BTN, final_BN


@scan_op.register_fake
def _scanned(
    x_BTN: Tensor, decay_BTN: Tensor, initial_BN: Tensor | None, segment_ids_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, _, N = x_BTN.shape
    return x_BTN.new_empty(x_BTN.shape), x_BTN.new_empty((B, N), dtype=torch.float32)


@torch.library.custom_op("archfront::scan_channels_backward", mutates_args=())
def scan_backward_op(
    dh_BTN: Tensor,
    dfinal_BN: Tensor,
    h_BTN: Tensor,
    decay_BTN: Tensor,
    initial_BN: Tensor | None,
    segment_ids_BT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `scan_op`."""
    inputs = (dh_BTN, dfinal_BN, h_BTN, decay_BTN, initial_BN, segment_ids_BT)
    gradients = _scan_gradients(*inputs)
    run(backward_launch(arch_of(dh_BTN.device), *inputs, *gradients), dh_BTN)
    return gradients


@scan_backward_op.register_fake
def _scan_gradients(
    dh_BTN: Tensor,
    dfinal_BN: Tensor,
    h_BTN: Tensor,
    decay_BTN: Tensor,
    initial_BN: Tensor | None,
    segment_ids_BT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    ddecay_BTN = decay_BTN.new_empty(decay_BTN.shape)
    return h_BTN.new_empty(h_BTN.shape), ddecay_BTN, torch.empty_like(dfinal_BN)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, decay_BTN, initial_BN, segment_ids_BT = inputs
    ctx.save_for_backward(output[0], decay_BTN, initial_BN, segment_ids_BT)


def _backward(ctx: Any, dh_BTN: Tensor, dfinal_BN: Tensor) -> tuple[Tensor | None, ...]:
    # autograd may pass an expanded gradient; the kernel's are contiguous
    dx, ddecay, dinitial = scan_backward_op(
        dh_BTN.contiguous(), dfinal_BN.contiguous(), *ctx.saved_tensors
    )
    return dx, ddecay, None if ctx.saved_tensors[2] is None else dinitial, None


scan_op.register_autograd(_backward, setup_context=_save)


def channel_scan(
    x_BTN: Tensor, decay_BTN: Tensor, state_BN: Tensor | None, *, segment_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.channel_scan`. Raises Unsupported."""
    require_device(x_BTN)
    require(x_BTN.dim() == 3, "x must be of shape [B, T, N]", x=x_BTN.shape)
    B, T, N = x_BTN.shape
    for name, y in {"x": x_BTN, "decay": decay_BTN}.items():
        require_rows(name, y, (B, T, N), x_BTN, 2)
    require_whole("state", state_BN, (B, N), (torch.float32,), x_BTN)
    require_whole("segment_ids", segment_ids, (B, T), (torch.int32,), x_BTN)
    return scan_op(x_BTN, decay_BTN, state_BN, segment_ids)
