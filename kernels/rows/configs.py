"""Launch configurations of the row kernels, per class of widths."""

from dataclasses import dataclass

from ..configs import ARCHS, require_arch
from ..requirements import Unsupported

RESIDENT_WARPS = 32  # per multiprocessor, where programs loop over rows: half of its limit
TILES_PER_PROGRAM = 8  # at least, there: partial sums stay small beside the rows read


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """A tile of `rows` x `block` elements and the warps that share it."""

    block: int  # elements of one row, a power of two; also the widest row of this width class
    rows: int
    warps: int


# kernel -> one Config per width class, narrowest first. Eight to sixteen elements per thread keep
# loads at 16 bytes. The norm's backward holds four tiles at once and spills beyond 8192 columns,
# with 8, 16 and 32 warps.
NARROW = (
    RowConfig(block=64, rows=16, warps=4),
    RowConfig(block=128, rows=8, warps=4),
    RowConfig(block=256, rows=4, warps=4),
    RowConfig(block=512, rows=2, warps=4),
    RowConfig(block=1024, rows=1, warps=4),
)
FORWARD = (
    *NARROW,
    RowConfig(block=2048, rows=1, warps=4),
    RowConfig(block=4096, rows=1, warps=8),
    RowConfig(block=8192, rows=1, warps=16),
)
BACKWARD = (
    *NARROW,
    RowConfig(block=2048, rows=1, warps=8),
    RowConfig(block=4096, rows=1, warps=8),
    RowConfig(block=8192, rows=1, warps=16),
)
EVERYWHERE = {
    "rms_norm_forward": (*FORWARD, RowConfig(block=16384, rows=1, warps=32)),
    "rms_norm_backward": BACKWARD,
    "gated_rms_norm_forward": FORWARD,
    "gated_rms_norm_backward": (*BACKWARD[:-1], RowConfig(block=8192, rows=1, warps=32)),
    "l2_norm": NARROW,
    "glu": NARROW,
    # block: pairs of one head; rows: heads times tokens
    "rope": (
        RowConfig(block=16, rows=64, warps=4),
        RowConfig(block=32, rows=32, warps=4),
        RowConfig(block=64, rows=16, warps=4),
        RowConfig(block=128, rows=8, warps=4),
        RowConfig(block=256, rows=4, warps=4),
    ),
}
TABLE = {(arch, kernel): classes for arch in ARCHS for kernel, classes in EVERYWHERE.items()}

# kernel -> its one tile, for rows of any width. The convolution's backward holds 14
# tokens of x and 11 of dy at once: two elements per thread.
CUT_EVERYWHERE = {
    "short_conv_forward": RowConfig(block=128, rows=16, warps=4),
    "short_conv_backward": RowConfig(block=64, rows=8, warps=8),  # rows: runs of consecutive tokens
    "short_conv_step": RowConfig(block=256, rows=4, warps=4),
    "cross_entropy": RowConfig(block=4096, rows=1, warps=8),
}
CUT = {(arch, kernel): tile for arch in ARCHS for kernel, tile in CUT_EVERYWHERE.items()}


def config_for(arch: str, kernel: str, width: int) -> RowConfig:
    """The narrowest class that holds `width`; raises Unsupported where none does."""
    require_arch(arch)
    for config in TABLE[arch, kernel]:
        if width <= config.block:
            return config
    widest = TABLE[arch, kernel][-1].block
    raise Unsupported(f"{kernel} needs width <= {widest} on {arch}, got width={width}")


def tile_for(arch: str, kernel: str) -> RowConfig:
    """The one tile of a kernel for rows of any width. Raises Unsupported for an unknown `arch`."""
    require_arch(arch)
    return CUT[arch, kernel]


def persistent_programs(arch: str, config: RowConfig, num_rows: int) -> int:
    """Number of programs for kernels that loop over rows and write a partial sum each."""
    resident = ARCHS[arch].multiprocessors * RESIDENT_WARPS // config.warps
    return max(1, min(resident, num_rows // (TILES_PER_PROGRAM * config.rows)))
