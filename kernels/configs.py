"""How each kernel is launched on each architecture: explicit tables, no search at import or run."""

from dataclasses import dataclass
from functools import cache

import torch

from .laws import Unsupported


@dataclass(frozen=True, kw_only=True)
class Arch:
    shared_bytes: int  # shared memory that one program may use
    multiprocessors: int  # of the largest part sold: sets the grid of kernels that loop over rows


ARCHS = {
    "sm_80": Arch(shared_bytes=166_912, multiprocessors=108),
    "sm_86": Arch(shared_bytes=101_376, multiprocessors=84),
    "sm_89": Arch(shared_bytes=101_376, multiprocessors=142),
    "sm_90": Arch(shared_bytes=232_448, multiprocessors=132),
    "sm_100": Arch(shared_bytes=232_448, multiprocessors=148),
    "sm_120": Arch(shared_bytes=101_376, multiprocessors=188),
}
INTERPRETER_ARCH = "sm_90"  # the interpreter has no tiles of its own: it runs these


@dataclass(frozen=True, kw_only=True)
class Config:
    """A tile of `rows` x `block` elements and the warps that share it."""

    block: int  # elements of one row, a power of two; also the widest row of this width class
    rows: int
    warps: int


# kernel -> one Config per width class, narrowest first. Eight to sixteen elements a thread keep the
# loads at 16 bytes. The norm's backward holds four tiles at once and spills beyond 8192 columns,
# with 8, 16 and 32 warps alike.
EVERYWHERE = {
    "rms_norm_forward": (
        Config(block=64, rows=16, warps=4),
        Config(block=128, rows=8, warps=4),
        Config(block=256, rows=4, warps=4),
        Config(block=512, rows=2, warps=4),
        Config(block=1024, rows=1, warps=4),
        Config(block=2048, rows=1, warps=4),
        Config(block=4096, rows=1, warps=8),
        Config(block=8192, rows=1, warps=16),
        Config(block=16384, rows=1, warps=32),
    ),
    "rms_norm_backward": (
        Config(block=64, rows=16, warps=4),
        Config(block=128, rows=8, warps=4),
        Config(block=256, rows=4, warps=4),
        Config(block=512, rows=2, warps=4),
        Config(block=1024, rows=1, warps=4),
        Config(block=2048, rows=1, warps=8),
        Config(block=4096, rows=1, warps=8),
        Config(block=8192, rows=1, warps=16),
    ),
    "swiglu": (
        Config(block=64, rows=16, warps=4),
        Config(block=128, rows=8, warps=4),
        Config(block=256, rows=4, warps=4),
        Config(block=512, rows=2, warps=4),
        Config(block=1024, rows=1, warps=4),
    ),
}
TABLE = {(arch, kernel): classes for arch in ARCHS for kernel, classes in EVERYWHERE.items()}


def config_for(arch: str, kernel: str, width: int) -> Config:
    """The narrowest class that holds `width`."""
    if arch not in ARCHS:
        raise Unsupported(f"the architecture must be one of {', '.join(ARCHS)}, got {arch}")
    for config in TABLE[arch, kernel]:
        if width <= config.block:
            return config
    widest = TABLE[arch, kernel][-1].block
    raise Unsupported(f"{kernel} needs width <= {widest} on {arch}, got width={width}")


@cache
def arch_of(device: torch.device) -> str:
    if device.type == "cpu":
        return INTERPRETER_ARCH
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
