"""Launch configurations of the FP8 kernels, for the architectures with e4m3."""

from ..configs import ARCHS, Config, require_arch
from ..requirements import require

LOADED = 16  # rows that are no multiple of it are loaded by bytes, through more registers
FIRST_WITH_E4M3 = 89  # sm_80 neither converts to e4m3 nor multiplies it

EVERYWHERE = {
    "strips": Config(tiles={"ROWS": 32, "COLS": 128}, warps=4),
    "squares": Config(tiles={"ROWS": 128, "COLS": 128}, warps=16),
    "given": Config(tiles={"ROWS": 16, "COLS": 256}, warps=4),
    "scale_rows": Config(tiles={"ROWS": 8, "COLS": 512}, warps=8),
    "matmul": Config(tiles={"BM": 128, "BN": 128, "GROUP": 8}, warps=8, stages=3),
    # a scale for each column of the tile takes many registers
    "matmul_by_row": Config(tiles={"BM": 128, "BN": 64, "GROUP": 8}, warps=8, stages=4),
    "matmul_uneven": Config(tiles={"BM": 64, "BN": 64, "GROUP": 8}, warps=8),
}
TABLE = {
    (arch, kernel): config
    for arch in ARCHS
    if int(arch.removeprefix("sm_")) >= FIRST_WITH_E4M3
    for kernel, config in EVERYWHERE.items()
}


def config_for(arch: str, kernel: str) -> Config:
    """The configuration of a kernel. Raises Unsupported for a GPU without e4m3."""
    require_arch(arch)
    constraint = f"e4m3 needs sm_{FIRST_WITH_E4M3} or newer, backend='torch' simulates it"
    require((arch, kernel) in TABLE, constraint, arch=arch)
    return TABLE[arch, kernel]
