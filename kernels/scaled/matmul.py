"""Product of scaled FP8 matrices (Triton)."""

# M and N rows of two matrices, K what their product sums over

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require
from ..tiles import tile_of
from .configs import LOADED, config_for
from .reference import BLOCK

BK = tl.constexpr(BLOCK)


@triton.jit(do_not_specialize=["num_rows"])
def matmul(
    a_ptr,
    a_scales_ptr,
    b_ptr,
    b_scales_ptr,
    c_ptr,
    a_stride,
    b_stride,
    a_scales_row,
    a_scales_block,
    b_scales_row,
    b_scales_block,
    num_rows,
    width,
    depth,
    A_HIGH: tl.constexpr,
    B_HIGH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Scaled FP8 GEMM: C = sum over blocks of 128 of K of (A B^T) * a_scale * b_scale.

    The tensor cores sum one block at a time, in fewer than 24 bits on Hopper; the blocks are summed
    in fp32. A_HIGH rows of A share a scale, B_HIGH of B; all of them where the stride is 0.
    A program takes BM x BN elements of C. FLOPs: 2 M N K.
    """
    high, across = tile_of(tl.cdiv(width, BN), GROUP)
    row = high * BM + tl.arange(0, BM)
    col = across * BN + tl.arange(0, BN)
    a_row = tl.minimum(row, num_rows - 1)
    b_row = tl.minimum(col, width - 1)
    a_at = a_ptr + a_row.to(tl.int64)[:, None] * a_stride
    b_at = b_ptr + b_row.to(tl.int64)[None, :] * b_stride
    # offsets and not pointers, to spare registers
    a_scales_at = a_row // A_HIGH * a_scales_row
    b_scales_at = b_row // B_HIGH * b_scales_row
    if B_HIGH >= BN:
        b_scales_at = across * BN // B_HIGH * b_scales_row
    acc = tl.zeros([BM, BN], tl.float32)
    for block in range(tl.cdiv(depth, BK)):
        k = block * BK + tl.arange(0, BK)
        a = tl.load(a_at + k[None, :], mask=k[None, :] < depth, other=0.0)
        b = tl.load(b_at + k[:, None], mask=k[:, None] < depth, other=0.0)
        a_scale = tl.load(a_scales_ptr + block * a_scales_block + a_scales_at)
        b_scale = tl.load(b_scales_ptr + block * b_scales_block + b_scales_at)
        part = tl.dot(a, b)
        if B_HIGH >= BN:
            acc += part * (a_scale * b_scale)[:, None]
        else:
            acc += part * a_scale[:, None] * b_scale[None, :]

    at = c_ptr + row.to(tl.int64)[:, None] * width + col[None, :]
    inside = (row < num_rows)[:, None] & (col < width)[None, :]
    tl.store(at, acc.to(c_ptr.dtype.element_ty), mask=inside)


def matmul_launch(
    arch: str, a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, c_MN: Tensor
) -> Launch:
    """Launch of `matmul`."""
    (M, K), N = a_MK.shape, len(b_NK)
    scales = _scales_arguments("a", a_scales, M) | _scales_arguments("b", b_scales, N)
    kind = "matmul" if scales["B_HIGH"] == BLOCK else "matmul_by_row"
    if any(size % LOADED for size in (K, a_MK.stride(0), b_NK.stride(0))):
        kind = "matmul_uneven"
    config = config_for(arch, kind)
    BM, BN = config.tiles["BM"], config.tiles["BN"]
    return Launch(
        kernel=matmul,
        grid=(triton.cdiv(M, BM) * triton.cdiv(N, BN),),
        arguments={
            "a_ptr": a_MK,
            "a_scales_ptr": a_scales,
            "b_ptr": b_NK,
            "b_scales_ptr": b_scales,
            "c_ptr": c_MN,
            "a_stride": a_MK.stride(0),
            "b_stride": b_NK.stride(0),
            **scales,
            "num_rows": M,
            "width": N,
            "depth": K,
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )


def _scales_arguments(name: str, scales: Tensor, num_rows: int) -> dict[str, int]:
    high, across = scales.shape
    return {
        f"{name}_scales_row": 0 if high == 1 else scales.stride(0),
        f"{name}_scales_block": 0 if across == 1 else scales.stride(1),
        f"{name.upper()}_HIGH": 1 if high == num_rows > 1 else BLOCK,
    }


@torch.library.custom_op("archfront::scaled_matmul", mutates_args=())
def scaled_matmul_op(
    a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """Custom operator `archfront::scaled_matmul`; the caller checks inputs."""
    c_MN = _product(a_MK, a_scales, b_NK, b_scales, out_dtype)
    arch = arch_of(a_MK.device)
    run(matmul_launch(arch, a_MK, a_scales, b_NK, b_scales, c_MN), a_MK)
    return c_MN


@scaled_matmul_op.register_fake
def _product(
    a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, out_dtype: torch.dtype
) -> Tensor:
    return a_MK.new_empty(len(a_MK), len(b_NK), dtype=out_dtype)


def scaled_matmul(
    a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """Triton implementation of `op.scaled_matmul`. Raises Unsupported."""
    require_device(a_MK)
    for name, x, scales in (("a", a_MK, a_scales), ("b", b_NK, b_scales)):
        require(
            x.dtype == torch.float8_e4m3fn
            and x.dim() == 2
            and x.numel() > 0
            and x.stride(1) == 1
            and x.shape[1] == a_MK.shape[1]
            and x.device == a_MK.device,
            "a and b must be float8_e4m3fn matrices on one device, contiguous rows of one length",
            **{name: f"{tuple(x.shape)} {x.dtype} {x.device}, strides {x.stride()}"},
        )
        (size, depth), blocks = x.shape, triton.cdiv(x.shape[1], BLOCK)
        require(
            scales.dtype == torch.float32
            and scales.dim() == 2
            and scales.shape[0] in (1, size, triton.cdiv(size, BLOCK))
            and scales.shape[1] in (1, blocks)
            and scales.device == x.device,
            f"scales of {name} must be float32, one for all, each or {BLOCK} of its {size} rows by "
            f"one for all or {BLOCK} of its {depth} columns",
            scales=f"{tuple(scales.shape)} {scales.dtype} {scales.device}",
        )
    return scaled_matmul_op(a_MK, a_scales, b_NK, b_scales, out_dtype)
