"""Mamba-1's selective scan, `selective_scan` of reference.py (Triton)."""

# B batch, T tokens, N channels, S states per channel, P programs over channels, L blocks of tokens

# Triton reads an annotation on a kernel's argument as its type at run time; the tuples that grow
# as it unrolls have no type outside of a kernel.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of, require_arch
from ..launch import Launch, require_device, run
from ..requirements import needs_gradient, require
from .channels import begins
from .configs import CHANNEL_SCANS, MOST_STATES, tile_of
from .requirements import require_rows, require_whole, row_stride

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def next_state(h, x, dt, A, B, new, USE_SEGMENT_IDS: tl.constexpr):
    """(e^{dt A} h + dt x B^T, e^{dt A}) for the next token; e^{dt A} is 0 at a segment start."""
    kept = tl.exp2(dt[:, None] * A * LOG2_E)
    if USE_SEGMENT_IDS:
        kept = tl.where(new, 0.0, kept)
    return kept * h + (dt * x)[:, None] * B[None, :], kept


@triton.jit(do_not_specialize=["tokens"])
def selective_forward(
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    segment_ids_ptr,
    initial_ptr,
    y_ptr,
    final_ptr,
    H_ptr,
    x_stride,
    dt_stride,
    B_stride,
    C_stride,
    tokens,
    width,
    states,
    INITIAL: tl.constexpr,
    SAVE: tl.constexpr,
    USE_SEGMENT_IDS: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Selective scan, forward: h <- e^{dt A} h + dt x B^T and y = h C + D x.

    A program loops over the tokens of BN channels. SAVE stores h before each UNROLL tokens: the
    backward recomputes the others.
    Bytes per token and channel, b per element: 3 b and with SAVE 4 S / UNROLL.
    """
    b = tl.program_id(0).to(tl.int64)
    first, end = b * tokens, (b + 1) * tokens
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    s = tl.arange(0, BS)
    at_state = n[:, None] * states + s[None, :]
    in_state = (n[:, None] < width) & (s[None, :] < states)
    A = tl.load(A_ptr + at_state, mask=in_state, other=0.0).to(tl.float32)
    D = tl.load(D_ptr + n, mask=n < width, other=0.0).to(tl.float32)
    h = tl.zeros([BN, BS], tl.float32)
    if INITIAL:
        h = tl.load(initial_ptr + b * width * states + at_state, mask=in_state, other=0.0)
    blocks = tl.cdiv(tokens, UNROLL)
    for block in range(blocks):
        if SAVE:
            H = H_ptr + (b * blocks + block) * width * states
            tl.store(H + at_state, h, mask=in_state)
        x, dt, B, C = (), (), (), ()
        for u in tl.static_range(UNROLL):
            row = first + block * UNROLL + u
            inside = n < tl.where(row < end, width, 0)
            in_s = s < tl.where(row < end, states, 0)
            x += (tl.load(x_ptr + row * x_stride + n, mask=inside, other=0.0),)
            dt += (tl.load(dt_ptr + row * dt_stride + n, mask=inside, other=0.0),)
            B += (tl.load(B_ptr + row * B_stride + s, mask=in_s, other=0.0),)
            C += (tl.load(C_ptr + row * C_stride + s, mask=in_s, other=0.0),)
        for u in tl.static_range(UNROLL):
            row = first + block * UNROLL + u
            new = begins(segment_ids_ptr, row, first, end) if USE_SEGMENT_IDS else False
            now = x[u].to(tl.float32)
            h, _ = next_state(
                h, now, dt[u].to(tl.float32), A, B[u].to(tl.float32), new, USE_SEGMENT_IDS
            )
            y = tl.sum(h * C[u].to(tl.float32)[None, :], 1) + D * now
            inside = n < tl.where(row < end, width, 0)
            tl.store(y_ptr + row * width + n, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(final_ptr + b * width * states + at_state, h, mask=in_state)


@triton.jit(do_not_specialize=["tokens"])
def selective_backward(
    dy_ptr,
    dfinal_ptr,
    H_ptr,
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    segment_ids_ptr,
    dx_ptr,
    ddt_ptr,
    dA_ptr,
    dB_ptr,
    dC_ptr,
    dD_ptr,
    dinitial_ptr,
    x_stride,
    dt_stride,
    B_stride,
    C_stride,
    tokens,
    width,
    states,
    USE_SEGMENT_IDS: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Selective scan, backward, over blocks of tokens from the last to the first.

    With a_t = e^{dt_t A} and dh_t = dy_t C_t^T + a_{t+1} dh_{t+1}:

    dx = D dy + dt sum_s(dh B)      dA = sum_t dt dh a h_{t-1}      dC_t = sum_n dy h
    ddt = sum_s dh (A a h_{t-1} + x B)      dB_t = sum_n dt x dh    dD = sum_t dy x

    A program writes its own partial sums of dA and dD over its row, and of
    dB and dC over its channels. Bytes per
    token and channel, b per element: 5 b + 4 S / UNROLL + 8 S / BN.
    """
    b = tl.program_id(0).to(tl.int64)
    first, end = b * tokens, (b + 1) * tokens
    part = tl.program_id(1)
    n = part * BN + tl.arange(0, BN)
    s = tl.arange(0, BS)
    at_state = n[:, None] * states + s[None, :]
    in_state = (n[:, None] < width) & (s[None, :] < states)
    A = tl.load(A_ptr + at_state, mask=in_state, other=0.0).to(tl.float32)
    D = tl.load(D_ptr + n, mask=n < width, other=0.0).to(tl.float32)
    carried = tl.load(dfinal_ptr + b * width * states + at_state, mask=in_state, other=0.0)
    dA = tl.zeros([BN, BS], tl.float32)
    dD = tl.zeros([BN], tl.float32)
    blocks = tl.cdiv(tokens, UNROLL)
    for back in range(blocks):
        block = blocks - 1 - back
        H = H_ptr + (b * blocks + block) * width * states
        h = tl.load(H + at_state, mask=in_state, other=0.0)
        x, dt, B, before, kept = (), (), (), (), ()
        for u in tl.static_range(UNROLL):
            row = first + block * UNROLL + u
            inside = n < tl.where(row < end, width, 0)
            in_s = s < tl.where(row < end, states, 0)
            x += (tl.load(x_ptr + row * x_stride + n, mask=inside, other=0.0).to(tl.float32),)
            dt += (tl.load(dt_ptr + row * dt_stride + n, mask=inside, other=0.0).to(tl.float32),)
            B += (tl.load(B_ptr + row * B_stride + s, mask=in_s, other=0.0).to(tl.float32),)
        for u in tl.static_range(UNROLL):
            row = first + block * UNROLL + u
            new = begins(segment_ids_ptr, row, first, end) if USE_SEGMENT_IDS else False
            before += (h,)
            h, a = next_state(h, x[u], dt[u], A, B[u], new, USE_SEGMENT_IDS)
            kept += (a,)
        before += (h,)
        for u in tl.static_range(UNROLL - 1, -1, -1):
            row = first + block * UNROLL + u
            inside = n < tl.where(row < end, width, 0)
            in_s = s < tl.where(row < end, states, 0)
            dy = tl.load(dy_ptr + row * width + n, mask=inside, other=0.0).to(tl.float32)
            C = tl.load(C_ptr + row * C_stride + s, mask=in_s, other=0.0).to(tl.float32)
            dh = dy[:, None] * C[None, :] + carried
            carried = kept[u] * dh
            past = carried * before[u]
            dA += dt[u][:, None] * past
            dD += dy * x[u]
            written = tl.sum(dh * B[u][None, :], 1)
            ddt = tl.sum(A * past, 1) + x[u] * written
            dx = D * dy + dt[u] * written
            at = row * width + n
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            tl.store(ddt_ptr + at, ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
            at = (row * tl.num_programs(1) + part) * states + s
            dB = tl.sum((dt[u] * x[u])[:, None] * dh, 0)
            tl.store(dB_ptr + at, dB, mask=in_s)
            tl.store(dC_ptr + at, tl.sum(dy[:, None] * before[u + 1], 0), mask=in_s)
    of_row = b * width * states
    tl.store(dA_ptr + of_row + at_state, dA, mask=in_state)
    tl.store(dinitial_ptr + of_row + at_state, carried, mask=in_state)
    tl.store(dD_ptr + b * width + n, dD, mask=n < width)


class Gradients(NamedTuple):
    """Gradients of x, dt, A, B, C, D and the initial state; A to D as partial sums."""

    dx_BTN: Tensor
    ddt_BTN: Tensor
    dA_BNS: Tensor
    dB_BTPS: Tensor
    dC_BTPS: Tensor
    dD_BN: Tensor
    dinitial_BNS: Tensor


def forward_launch(
    arch: str,
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    initial_BNS: Tensor | None,
    segment_ids_BT: Tensor | None,
    y_BTN: Tensor,
    final_BNS: Tensor,
    H_BLNS: Tensor,
) -> Launch:
    """Launch of `selective_forward`."""
    arguments = {
        **_inputs(x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N, segment_ids_BT),
        "initial_ptr": initial_BNS,
        "INITIAL": initial_BNS is not None,
        "y_ptr": y_BTN,
        "final_ptr": final_BNS,
        "H_ptr": H_BLNS,
        "SAVE": H_BLNS.numel() > 0,
    }
    return _launch(arch, "selective", selective_forward, x_BTN, arguments)


def backward_launch(
    arch: str,
    dy_BTN: Tensor,
    dfinal_BNS: Tensor,
    H_BLNS: Tensor,
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    segment_ids_BT: Tensor | None,
    out: Gradients,
) -> Launch:
    """Launch of `selective_backward`."""
    arguments = {
        **_inputs(x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N, segment_ids_BT),
        "dy_ptr": dy_BTN,
        "dfinal_ptr": dfinal_BNS,
        "H_ptr": H_BLNS,
        "dx_ptr": out.dx_BTN,
        "ddt_ptr": out.ddt_BTN,
        "dA_ptr": out.dA_BNS,
        "dB_ptr": out.dB_BTPS,
        "dC_ptr": out.dC_BTPS,
        "dD_ptr": out.dD_BN,
        "dinitial_ptr": out.dinitial_BNS,
    }
    return _launch(arch, "selective_backward", selective_backward, x_BTN, arguments)


def _inputs(
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    segment_ids_BT: Tensor | None,
) -> dict[str, Any]:
    return {
        "x_ptr": x_BTN,
        "dt_ptr": dt_BTN,
        "A_ptr": A_NS,
        "B_ptr": B_BTS,
        "C_ptr": C_BTS,
        "D_ptr": D_N,
        "segment_ids_ptr": segment_ids_BT,
        "x_stride": row_stride(x_BTN),
        "dt_stride": row_stride(dt_BTN),
        "B_stride": row_stride(B_BTS),
        "C_stride": row_stride(C_BTS),
        "tokens": x_BTN.shape[1],
        "width": x_BTN.shape[2],
        "states": A_NS.shape[1],
        "USE_SEGMENT_IDS": segment_ids_BT is not None,
        "BS": tile_of(A_NS.shape[1]),
    }


def _launch(arch: str, name: str, kernel: Any, x_BTN: Tensor, arguments: dict[str, Any]) -> Launch:
    require_arch(arch)
    config = CHANNEL_SCANS[name]
    arguments = {**arguments, **config.tiles}
    B, _, N = x_BTN.shape
    return Launch(
        kernel=kernel,
        grid=(B, triton.cdiv(N, config.tiles["BN"])),
        arguments={argument: arguments[argument] for argument in kernel.arg_names},
        warps=config.warps,
    )


def new_outputs(x_BTN: Tensor, A_NS: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Empty (y_BTN, final_BNS, H_BLNS), the last for the backward: empty without `save`."""
    B, T, _ = x_BTN.shape
    blocks = triton.cdiv(T, CHANNEL_SCANS["selective"].tiles["UNROLL"])
    H = (B, blocks, *A_NS.shape) if save else 0
    final_BNS = x_BTN.new_empty((B, *A_NS.shape), dtype=torch.float32)
    return x_BTN.new_empty(x_BTN.shape), final_BNS, x_BTN.new_empty(H, dtype=torch.float32)


def new_gradients(x_BTN: Tensor, dt_BTN: Tensor, A_NS: Tensor) -> Gradients:
    """Empty gradients; those of parameters as partial sums in float32."""
    (B, T, N), S = x_BTN.shape, A_NS.shape[1]
    parts = triton.cdiv(N, CHANNEL_SCANS["selective_backward"].tiles["BN"])

    def new(*shape: int) -> Tensor:
        return x_BTN.new_empty(shape, dtype=torch.float32)

    return Gradients(
        dx_BTN=x_BTN.new_empty(B, T, N),
        ddt_BTN=dt_BTN.new_empty(B, T, N),
        dA_BNS=new(B, N, S),
        dB_BTPS=new(B, T, parts, S),
        dC_BTPS=new(B, T, parts, S),
        dD_BN=new(B, N),
        dinitial_BNS=new(B, N, S),
    )


@torch.library.custom_op("archfront::selective_scan", mutates_args=())
def selective_op(
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    initial_BNS: Tensor | None,
    segment_ids_BT: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Custom operator `archfront::selective_scan`, differentiable; the caller checks inputs."""
    outputs = new_outputs(x_BTN, A_NS, save)
    inputs = (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N, initial_BNS, segment_ids_BT)
    run(forward_launch(arch_of(x_BTN.device), *inputs, *outputs), x_BTN)
    return outputs


@selective_op.register_fake
def _scanned(x_BTN: Tensor, dt_BTN: Tensor, A_NS: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return new_outputs(x_BTN, A_NS, rest[-1])


@torch.library.custom_op("archfront::selective_scan_backward", mutates_args=())
def selective_backward_op(
    dy_BTN: Tensor,
    dfinal_BNS: Tensor,
    H_BLNS: Tensor,
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    segment_ids_BT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `selective_op`."""
    out = new_gradients(x_BTN, dt_BTN, A_NS)
    inputs = (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N, segment_ids_BT)
    arch = arch_of(x_BTN.device)
    run(backward_launch(arch, dy_BTN, dfinal_BNS, H_BLNS, *inputs, out), x_BTN)
    return (
        out.dx_BTN,
        out.ddt_BTN,
        out.dA_BNS.sum(0).to(A_NS.dtype),
        out.dB_BTPS.sum(2).to(B_BTS.dtype),
        out.dC_BTPS.sum(2).to(C_BTS.dtype),
        out.dD_BN.sum(0).to(D_N.dtype),
        out.dinitial_BNS,
    )


@selective_backward_op.register_fake
def _gradients(
    dy_BTN: Tensor, dfinal_BNS: Tensor, H_BLNS: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return *(x.new_empty(x.shape) for x in rest[:6]), torch.empty_like(dfinal_BNS)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *differentiable, initial_BNS, segment_ids_BT, _ = inputs
    ctx.given_state = initial_BNS is not None
    ctx.save_for_backward(output[2], *differentiable, segment_ids_BT)


def _backward(ctx: Any, dy_BTN: Tensor, dfinal_BNS: Tensor, _: Tensor) -> tuple[Any, ...]:
    # autograd may pass an expanded gradient; the kernel's are contiguous
    *gradients, dinitial = selective_backward_op(
        dy_BTN.contiguous(), dfinal_BNS.contiguous(), *ctx.saved_tensors
    )
    return *gradients, dinitial if ctx.given_state else None, None, None


selective_op.register_autograd(_backward, setup_context=_save)


def selective_scan(
    x_BTN: Tensor,
    dt_BTN: Tensor,
    A_NS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_N: Tensor,
    state_BNS: Tensor | None,
    *,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.selective_scan`. Raises Unsupported."""
    require_device(x_BTN)
    constraint = "x must be of shape [B, T, N] and A of shape [N, S]"
    require(x_BTN.dim() == 3 and A_NS.dim() == 2, constraint, x=x_BTN.shape, A=A_NS.shape)
    (B, T, N), S = x_BTN.shape, A_NS.shape[1]
    require(S <= MOST_STATES, f"a channel has at most {MOST_STATES} states", S=S)
    for name, y in {"x": x_BTN, "dt": dt_BTN}.items():
        require_rows(name, y, (B, T, N), x_BTN, 2)
    for name, y in {"B": B_BTS, "C": C_BTS}.items():
        require_rows(name, y, (B, T, S), x_BTN, 2)
    require_rows("A", A_NS, (N, S), x_BTN, 0)
    require_rows("D", D_N, (N,), x_BTN, 0)
    require_whole("state", state_BNS, (B, N, S), (torch.float32,), x_BTN)
    require_whole("segment_ids", segment_ids, (B, T), (torch.int32,), x_BTN)
    inputs = (x_BTN, dt_BTN, A_NS, B_BTS, C_BTS, D_N)
    save = needs_gradient(*inputs, *([] if state_BNS is None else [state_BNS]))
    y_BTN, final_BNS, _ = selective_op(*inputs, state_BNS, segment_ids, save)
    return y_BTN, final_BNS
