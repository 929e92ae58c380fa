"""The GPU architectures that kernels are tuned for, and what a tuning is.

Each family of kernels keeps its table in its own configs.py: explicit, no search at import or run.
"""

from collections.abc import Mapping
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
    """Tile sizes by the kernel's own names, the warps that share a tile, the stages of its loop."""

    tiles: Mapping[str, int]
    warps: int
    stages: int = 2


def require_arch(arch: str) -> None:
    if arch not in ARCHS:
        raise Unsupported(f"the architecture must be one of {', '.join(ARCHS)}, got {arch}")


@cache
def arch_of(device: torch.device) -> str:
    if device.type == "cpu":
        return INTERPRETER_ARCH
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
