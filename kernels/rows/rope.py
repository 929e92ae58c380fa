"""Rotary position embedding (Triton).

Reference: `rope` in reference.py.
"""

# M tokens of all sequences, T tokens of one, H heads, D head width, P pairs, L rows of the tables

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import needs_gradient, require, require_float
from .configs import config_for
from .heads import by_token

WIDEST = 512  # rotated dimensions of a head


@triton.jit(do_not_specialize=["num_tokens"])
def rotate(
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    x_stride,
    x_head_stride,
    num_tokens,
    table_tokens,
    heads,
    width,
    pairs,
    INVERSE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    LAST: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    STILL: tl.constexpr,
):
    """RoPE: (a, b) -> (a cos - b sin, b cos + a sin); the backward is INVERSE, with -sin.

    A program takes TOKENS x HEADS heads, and reads a token's row of the tables once for all of
    them. Bytes per head, b per element: 2 b D; 8 P per token for the tables.
    """
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None, None]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[None, :, None]
    pair = tl.arange(0, PAIRS)[None, None, :]
    present = (token < num_tokens) & (head < heads)
    table = (token % table_tokens).to(tl.int64) * pairs + pair
    known = (token < num_tokens) & (pair < pairs)
    cos = tl.load(cos_ptr + table, mask=known, other=0.0)
    sin = tl.load(sin_ptr + table, mask=known, other=0.0)
    if INVERSE:
        sin = -sin

    x_ptr += token.to(tl.int64) * x_stride + head.to(tl.int64) * x_head_stride
    y_ptr += (token.to(tl.int64) * heads + head) * width
    first = width - 2 * pairs if LAST else 0
    if INTERLEAVED:
        col = tl.arange(0, 2 * PAIRS)[None, None, :]
        inside = present & (col < 2 * pairs)
        x = tl.load(x_ptr + first + col, mask=inside, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, [TOKENS, HEADS, PAIRS, 2]))
        turned = tl.join(a * cos - b * sin, b * cos + a * sin)
        y = tl.reshape(turned, [TOKENS, HEADS, 2 * PAIRS])
        tl.store(y_ptr + first + col, y.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        inside = present & (pair < pairs)
        a = tl.load(x_ptr + first + pair, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + first + pairs + pair, mask=inside, other=0.0).to(tl.float32)
        y_a, y_b = a * cos - b * sin, b * cos + a * sin
        tl.store(y_ptr + first + pair, y_a.to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(y_ptr + first + pairs + pair, y_b.to(y_ptr.dtype.element_ty), mask=inside)
    if STILL > 0:
        col = tl.arange(0, STILL)[None, None, :]
        inside = present & (col < width - 2 * pairs)
        other = 0 if LAST else 2 * pairs
        tl.store(y_ptr + other + col, tl.load(x_ptr + other + col, mask=inside), mask=inside)


def launch(
    arch: str,
    x_MHD: Tensor,
    cos_LP: Tensor,
    sin_LP: Tensor,
    y_MHD: Tensor,
    interleaved: bool,
    last: bool,
    inverse: bool,
) -> Launch:
    """Launch of `rotate`."""
    num_tokens, heads, width = x_MHD.shape
    table_tokens, pairs = cos_LP.shape
    config = config_for(arch, "rope", pairs)
    heads_per_program = min(config.rows, triton.next_power_of_2(heads))
    tokens_per_program = config.rows // heads_per_program
    still = width - 2 * pairs
    return Launch(
        kernel=rotate,
        grid=(triton.cdiv(num_tokens, tokens_per_program), triton.cdiv(heads, heads_per_program)),
        arguments={
            "x_ptr": x_MHD,
            "cos_ptr": cos_LP,
            "sin_ptr": sin_LP,
            "y_ptr": y_MHD,
            "x_stride": x_MHD.stride(0),
            "x_head_stride": x_MHD.stride(1),
            "num_tokens": num_tokens,
            "table_tokens": table_tokens,
            "heads": heads,
            "width": width,
            "pairs": pairs,
            "INVERSE": inverse,
            "INTERLEAVED": interleaved,
            "LAST": last,
            "TOKENS": tokens_per_program,
            "HEADS": heads_per_program,
            "PAIRS": config.block,
            "STILL": triton.next_power_of_2(still) if still else 0,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::rope", mutates_args=())
def rope_op(
    x_MHD: Tensor, cos_LP: Tensor, sin_LP: Tensor, interleaved: bool, last: bool, inverse: bool
) -> Tensor:
    """Custom operator `archfront::rope`, differentiable; the caller checks inputs."""
    y_MHD = _rope_output(x_MHD, cos_LP, sin_LP, interleaved, last, inverse)
    arch = arch_of(x_MHD.device)
    run(launch(arch, x_MHD, cos_LP, sin_LP, y_MHD, interleaved, last, inverse), x_MHD)
    return y_MHD


@rope_op.register_fake
def _rope_output(
    x_MHD: Tensor, cos_LP: Tensor, sin_LP: Tensor, interleaved: bool, last: bool, inverse: bool
) -> Tensor:
    return x_MHD.new_empty(x_MHD.shape)


def _save_rope(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos_LP, sin_LP, *ctx.settings = inputs
    ctx.save_for_backward(cos_LP, sin_LP)


def _backward_rope(ctx: Any, dy_MHD: Tensor) -> tuple[Tensor | None, ...]:
    interleaved, last, inverse = ctx.settings
    # autograd may pass an expanded gradient; the kernel's has contiguous heads
    dx_MHD = rope_op(dy_MHD.contiguous(), *ctx.saved_tensors, interleaved, last, not inverse)
    return dx_MHD, None, None, None, None, None


rope_op.register_autograd(_backward_rope, setup_context=_save_rope)


def rope(
    x_BTHD: Tensor, cos: Tensor, sin: Tensor, *, rotated: int, interleaved: bool, last: bool
) -> Tensor:
    """Triton implementation of `op.rope`. Raises Unsupported."""
    require(x_BTHD.dim() == 4, "x must be [batch, tokens, heads, width]", shape=tuple(x_BTHD.shape))
    batch, tokens, _, width = x_BTHD.shape
    require_device(x_BTHD)
    require_float(x_BTHD, "x")
    widest = min(width, WIDEST)
    constraint = f"rotated must be even, > 0 and <= {widest}"
    require(rotated % 2 == 0 and 0 < rotated <= widest, constraint, rotated=rotated)
    require(not needs_gradient(cos, sin), "the tables of rope have no gradient", requires_grad=True)
    for name, table in (("cos", cos), ("sin", sin)):
        shapes = (tokens, rotated // 2), (batch, tokens, rotated // 2)
        require(
            table.shape in shapes
            and table.dtype == torch.float32
            and table.device == x_BTHD.device
            and table.is_contiguous(),
            f"{name} must be contiguous, float32, of shape {shapes[0]} or {shapes[1]}, "
            f"on {x_BTHD.device}",
            shape=tuple(table.shape),
            dtype=table.dtype,
            strides=table.stride(),
            device=table.device,
        )
    require(
        cos.shape == sin.shape,
        "cos and sin must be of one shape",
        cos=tuple(cos.shape),
        sin=tuple(sin.shape),
    )
    cos_LP, sin_LP = (table.view(-1, rotated // 2) for table in (cos, sin))
    x_MHD = by_token(x_BTHD, "x")
    return rope_op(x_MHD, cos_LP, sin_LP, interleaved, last, False).view(x_BTHD.shape)
