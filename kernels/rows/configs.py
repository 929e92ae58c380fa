"""How the row kernels are launched: a tile for each class of widths."""

from dataclasses import dataclass

from ..configs import ARCHS, require_arch
from ..laws import Unsupported


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """A tile of `rows` x `block` elements and the warps that share it."""

    block: int  # elements of one row, a power of two; also the widest row of this width class
    rows: int
    warps: int


# kernel -> one Config per width class, narrowest first. Eight to sixteen elements a thread keep the
# loads at 16 bytes. The norm's backward holds four tiles at once and spills beyond 8192 columns,
# with 8, 16 and 32 warps alike.
EVERYWHERE = {
    "rms_norm_forward": (
        RowConfig(block=64, rows=16, warps=4),
        RowConfig(block=128, rows=8, warps=4),
        RowConfig(block=256, rows=4, warps=4),
        RowConfig(block=512, rows=2, warps=4),
        RowConfig(block=1024, rows=1, warps=4),
        RowConfig(block=2048, rows=1, warps=4),
        RowConfig(block=4096, rows=1, warps=8),
        RowConfig(block=8192, rows=1, warps=16),
        RowConfig(block=16384, rows=1, warps=32),
    ),
    "rms_norm_backward": (
        RowConfig(block=64, rows=16, warps=4),
        RowConfig(block=128, rows=8, warps=4),
        RowConfig(block=256, rows=4, warps=4),
        RowConfig(block=512, rows=2, warps=4),
        RowConfig(block=1024, rows=1, warps=4),
        RowConfig(block=2048, rows=1, warps=8),
        RowConfig(block=4096, rows=1, warps=8),
        RowConfig(block=8192, rows=1, warps=16),
    ),
    "swiglu": (
        RowConfig(block=64, rows=16, warps=4),
        RowConfig(block=128, rows=8, warps=4),
        RowConfig(block=256, rows=4, warps=4),
        RowConfig(block=512, rows=2, warps=4),
        RowConfig(block=1024, rows=1, warps=4),
    ),
}
TABLE = {(arch, kernel): classes for arch in ARCHS for kernel, classes in EVERYWHERE.items()}


def config_for(arch: str, kernel: str, width: int) -> RowConfig:
    """The narrowest class that holds `width`."""
    require_arch(arch)
    for config in TABLE[arch, kernel]:
        if width <= config.block:
            return config
    widest = TABLE[arch, kernel][-1].block
    raise Unsupported(f"{kernel} needs width <= {widest} on {arch}, got width={width}")
