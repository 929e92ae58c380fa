"""Launch configurations of the expert kernels, per architecture, dtype and rows per expert."""

import torch
import triton

from ..configs import ARCHS, Config, require_arch

LOADED = 16  # widths that are no multiple of it are loaded piecewise, through more registers
FEW = 32  # rows per expert on average, up to which reading the weights dominates
SMALLEST_EXPERTS_TILE = 256  # of offsets; the same for most models, so that they share a binary


def _gemm(BM: int, BN: int, BK: int, warps: int, stages: int) -> Config:
    return Config(tiles={"BM": BM, "BN": BN, "BK": BK, "GROUP": 8}, warps=warps, stages=stages)


# many rows per expert, few, or small tiles for float32 and for widths that are loaded piecewise;
# gate_up has two accumulators of BM x BN, the others one
MANY_HOPPER = {
    "grouped_gemm": _gemm(128, 256, 64, 8, 3),
    "gate_up": _gemm(128, 128, 64, 8, 3),
    "weight_grad": _gemm(128, 128, 64, 8, 3),
}
MANY = {
    "grouped_gemm": _gemm(128, 128, 32, 8, 4),
    "gate_up": _gemm(128, 64, 32, 8, 4),
    "weight_grad": _gemm(128, 128, 32, 8, 4),
}
FEW_ROWS = {
    "grouped_gemm": _gemm(16, 128, 64, 4, 4),
    "gate_up": _gemm(16, 64, 64, 4, 4),
    "weight_grad": _gemm(128, 128, 16, 8, 2),
}
SMALL = {
    "grouped_gemm": _gemm(64, 64, 32, 4, 2),
    "gate_up": _gemm(64, 32, 32, 4, 2),
    "weight_grad": _gemm(64, 64, 32, 4, 2),
}
TABLE = {
    (arch, size): kernels
    for arch in ARCHS
    for size, kernels in {
        "many": MANY_HOPPER if arch in ("sm_90", "sm_100") else MANY,
        "few": FEW_ROWS,
        "small": SMALL,
    }.items()
}
BWD_ACTIVATION = Config(tiles={"ROWS": 4, "BLOCK": 512}, warps=4)
COMBINE = Config(tiles={"ROWS": 4, "BLOCK": 512}, warps=4)


def config_for(
    arch: str, kernel: str, dtype: torch.dtype, num_rows: int, weight_shape: torch.Size
) -> Config:
    """The configuration by the weight's shape [E, ...] and the rows per expert.

    Raises Unsupported for an unknown `arch`.
    """
    require_arch(arch)
    n_experts, *widths = weight_shape
    if dtype == torch.float32 or any(width % LOADED for width in widths):
        return TABLE[arch, "small"][kernel]
    return TABLE[arch, "few" if num_rows <= FEW * n_experts else "many"][kernel]


def slots(num_rows: int, n_experts: int, height: int) -> int:
    """Row tiles that cover the rows of all experts and of none (`rows_of` in tiles.py)."""
    return num_rows // height + n_experts + 1


def experts_tile(n_experts: int) -> int:
    """The power of two that holds every expert and the rows of none."""
    return max(SMALLEST_EXPERTS_TILE, triton.next_power_of_2(n_experts + 1))
