"""The GPU architectures that kernels are tuned for, and what a tuning is.

Each family of kernels keeps its table in its own configs.py: explicit, no search at import or run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch

from .requirements import Unsupported


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


META_ARCH: ContextVar[str | None] = ContextVar("META_ARCH", default=None)


@contextmanager
def meta_tensors_as(arch: str) -> Iterator[None]:
    """Inside, meta tensors stand for those of a GPU of `arch`: its kernels and its tables answer."""
    require_arch(arch)
    before = META_ARCH.set(arch)
    try:
        yield
    finally:
        META_ARCH.reset(before)


def gpu_arch(device: torch.device) -> str | None:
    """Of a GPU, or of the one that meta tensors stand for; None where there is neither."""
    if device.type == "cuda":
        return _capability(device)
    return META_ARCH.get() if device.type == "meta" else None


def arch_of(device: torch.device) -> str:
    """Whose tables the kernels take."""
    return gpu_arch(device) or INTERPRETER_ARCH


@cache
def _capability(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
