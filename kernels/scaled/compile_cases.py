"""Launches of the FP8 kernels that are compiled for every architecture with e4m3."""

# M and N rows of two matrices, K what their product sums over

from collections.abc import Iterator

import torch
from torch import Tensor

from ..launch import Launch
from .configs import TABLE
from .matmul import matmul_launch
from .quantize import encode_launch, scale_rows_launch
from .reference import ROW, SQUARE, STRIP, TENSOR, Tile

Listed = Iterator[tuple[str, str, Launch]]
QUANTIZED = ((4096, 7168), (4096, 1000))
PRODUCTS = ((4096, 7168, 2048), (4096, 1000, 1000))
SCALES: tuple[tuple[str, Tile, Tile], ...] = (
    ("strips x squares", STRIP, SQUARE),
    ("strips x strips", STRIP, STRIP),
    ("rows x rows", ROW, ROW),
    ("tensor x tensor", TENSOR, TENSOR),
)


def launches(arch: str) -> Listed:
    """(kernel, shape, launch): every kernel at the shapes above."""
    if (arch, "matmul") not in TABLE:
        return
    for M, N in QUANTIZED:
        x, values = _empty(torch.bfloat16, M, N), _empty(torch.float8_e4m3fn, M, N)
        for name, tile in (("strips", STRIP), ("squares", SQUARE), ("row", ROW)):
            scales = _scales(M, N, tile)
            launch = encode_launch(arch, x, values, scales, tile)
            yield "encode", f"{M} x {N} {name}", launch
        columns = encode_launch(arch, x.T, values.view(N, M), _scales(N, M, STRIP), STRIP)
        yield "encode", f"{M} x {N} strips of columns", columns
        launch = scale_rows_launch(arch, x, _empty(torch.float32, M))
        yield "scale_rows", f"{M} x {N}", launch
    for M, N, K in PRODUCTS:
        a, b = _empty(torch.float8_e4m3fn, M, K), _empty(torch.float8_e4m3fn, N, K)
        c = _empty(torch.bfloat16, M, N)
        for name, of_a, of_b in SCALES:
            scales = _scales(M, K, of_a), _scales(N, K, of_b)
            launch = matmul_launch(arch, a, scales[0], b, scales[1], c)
            yield "matmul", f"{M} x {N} x {K} {name}", launch


def _scales(M: int, N: int, tile: Tile) -> Tensor:
    rows, columns = tile[0] or M, tile[1] or N
    return _empty(torch.float32, -(-N // columns), -(-M // rows)).T


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
