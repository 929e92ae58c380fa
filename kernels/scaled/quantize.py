"""Quantization to FP8 with a scale per tile (Triton), to the bit as in reference.py."""

# M rows, N columns

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require, require_float
from . import reference
from .configs import config_for
from .reference import ROW, SQUARE, STRIP, TENSOR, Tile

E4M3_MAX = tl.constexpr(reference.E4M3_MAX)
SMALLEST_AMAX = tl.constexpr(reference.SMALLEST_AMAX)
KERNELS: dict[Tile, str] = {STRIP: "strips", SQUARE: "squares", ROW: "given", TENSOR: "given"}


@triton.jit
def encode(
    x_ptr,
    values_ptr,
    scales_ptr,
    x_row,
    x_col,
    scales_row,
    scales_col,
    num_rows,
    width,
    GIVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """FP8 quantization: values = e4m3(x / scale). A program takes a tile of ROWS x COLS.

    Each row of that tile has its own scale, or with WHOLE the tile has one, which is stored; with
    GIVEN the scales of the rows are loaded. Bytes per element of b bytes: b + 1, and 4 per scale.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1).to(tl.int64) * COLS + tl.arange(0, COLS)
    inside = (row < num_rows)[:, None] & (col < width)[None, :]
    at = x_ptr + row[:, None] * x_row + col[None, :] * x_col
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)

    if GIVEN:
        scale = tl.load(scales_ptr + row * scales_row, mask=row < num_rows, other=1.0)[:, None]
    elif WHOLE:
        scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x)), SMALLEST_AMAX), E4M3_MAX)
        at = scales_ptr + tl.program_id(0) * scales_row + tl.program_id(1) * scales_col
        tl.store(at, scale)
    else:
        scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), 1), SMALLEST_AMAX), E4M3_MAX)
        at = scales_ptr + row * scales_row + tl.program_id(1) * scales_col
        tl.store(at, scale, mask=row < num_rows)
        scale = scale[:, None]
    y = tl.div_rn(x, scale)
    y = tl.minimum(tl.maximum(y, -E4M3_MAX), E4M3_MAX).to(tl.float8e4nv)
    tl.store(values_ptr + row[:, None] * width + col[None, :], y, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def scale_rows(
    x_ptr,
    scales_ptr,
    x_row,
    x_col,
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """FP8 scales per row: scale = max(amax, 1e-12) / 448. A program takes ROWS rows.

    Bytes per row: b N.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    amax = tl.full([ROWS, COLS], SMALLEST_AMAX, tl.float32)
    for begin in range(0, width, COLS):
        col = begin + tl.arange(0, COLS)
        at = x_ptr + row[:, None] * x_row + col.to(tl.int64)[None, :] * x_col
        inside = (row < num_rows)[:, None] & (col < width)[None, :]
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        amax = tl.maximum(amax, tl.abs(x))
    scale = tl.div_rn(tl.max(amax, 1), E4M3_MAX)
    tl.store(scales_ptr + row, scale, mask=row < num_rows)


def encode_launch(arch: str, x_MN: Tensor, values_MN: Tensor, scales: Tensor, tile: Tile) -> Launch:
    """The launch; `scales` are written, or read where a tile spans a whole row."""
    M, N = x_MN.shape
    config = config_for(arch, KERNELS[tile])
    rows, columns = config.tiles["ROWS"], config.tiles["COLS"]
    scales_row, scales_col = (
        0 if size == 1 else stride
        for size, stride in zip(scales.shape, scales.stride(), strict=True)
    )
    return Launch(
        kernel=encode,
        grid=(triton.cdiv(M, rows), triton.cdiv(N, columns)),
        arguments={
            "x_ptr": x_MN,
            "values_ptr": values_MN,
            "scales_ptr": scales,
            "x_row": x_MN.stride(0),
            "x_col": x_MN.stride(1),
            "scales_row": scales_row,
            "scales_col": scales_col,
            "num_rows": M,
            "width": N,
            "GIVEN": tile[1] is None,
            "WHOLE": tile == SQUARE,
            **config.tiles,
        },
        warps=config.warps,
    )


def scale_rows_launch(arch: str, x_MN: Tensor, scales_M: Tensor) -> Launch:
    """Launch of `scale_rows`."""
    M, N = x_MN.shape
    config = config_for(arch, "scale_rows")
    return Launch(
        kernel=scale_rows,
        grid=(triton.cdiv(M, config.tiles["ROWS"]),),
        arguments={
            "x_ptr": x_MN,
            "scales_ptr": scales_M,
            "x_row": x_MN.stride(0),
            "x_col": x_MN.stride(1),
            "num_rows": M,
            "width": N,
            **config.tiles,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::quantize", mutates_args=())
def quantize_op(x_MN: Tensor, rows: int | None, columns: int | None) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::quantize`; the caller checks inputs."""
    tile = rows, columns
    arch = arch_of(x_MN.device)
    values_MN, scales = _quantize_outputs(x_MN, rows, columns)
    if columns is None:
        scales_M = scales[:, 0] if rows == 1 else scales.new_empty(len(x_MN))
        run(scale_rows_launch(arch, x_MN, scales_M), x_MN)
        if rows is None:
            torch.amax(scales_M, 0, out=scales[0, 0])
    run(encode_launch(arch, x_MN, values_MN, scales, tile), x_MN)
    return values_MN, scales


@quantize_op.register_fake
def _quantize_outputs(x_MN: Tensor, rows: int | None, columns: int | None) -> tuple[Tensor, Tensor]:
    """Empty (values, scales), scales column-major: a product reads those of one column together."""
    M, N = x_MN.shape
    high, across = (1 if size is None else -(-of // size) for of, size in ((M, rows), (N, columns)))
    scales = x_MN.new_empty(across, high, dtype=torch.float32).T
    return x_MN.new_empty(M, N, dtype=torch.float8_e4m3fn), scales


def quantize(x_MN: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.quantize`. Raises Unsupported."""
    require_device(x_MN)
    require_float(x_MN, "x")
    constraint = f"x must be a matrix with elements, the tile one of {', '.join(map(str, KERNELS))}"
    shape = tuple(x_MN.shape)
    require(
        x_MN.dim() == 2 and x_MN.numel() > 0 and tile in KERNELS, constraint, shape=shape, tile=tile
    )
    return quantize_op(x_MN, *tile)
