"""GPU architectures that the kernels support, and the record of a launch configuration.

Each family of kernels has its table of configurations in its own configs.py: explicit, without
autotuning at import or at run time.
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
    """Limits of a CUDA compute capability that the kernels depend on.

    `shared_bytes`: the most shared memory that one thread block may use: the capability's 164, 228
    or 100 KiB per multiprocessor less 1 KiB that the driver reserves (CUDA C++ Programming Guide,
    technical specifications per compute capability).
    `multiprocessors`: of the largest part sold (A100, L40S, H100 SXM, B200, RTX PRO 6000). It sizes
    the grid of kernels whose programs loop over rows; smaller parts run it in more waves.
    """

    shared_bytes: int
    multiprocessors: int


# The one list: tables, compile tests and the support check go through it.
ARCHS = {
    "sm_80": Arch(shared_bytes=166_912, multiprocessors=108),
    "sm_89": Arch(shared_bytes=101_376, multiprocessors=142),
    "sm_90": Arch(shared_bytes=232_448, multiprocessors=132),
    "sm_100": Arch(shared_bytes=232_448, multiprocessors=148),
    "sm_120": Arch(shared_bytes=101_376, multiprocessors=188),
}
SAME_KERNELS = {"sm_103": "sm_100"}  # Blackwell Ultra runs what Blackwell runs
INTERPRETER_ARCH = "sm_90"  # whose configurations the interpreter runs


@dataclass(frozen=True, kw_only=True)
class Config:
    """A launch: tile sizes by the kernel's argument names, warps, stages of its pipelined loop."""

    tiles: Mapping[str, int]
    warps: int
    stages: int = 2


def require_arch(arch: str) -> None:
    """Raise Unsupported where `arch` ("sm_90") is not in ARCHS."""
    if arch not in ARCHS:
        raise Unsupported(f"the architecture must be one of {', '.join(ARCHS)}, got {arch}")


META_ARCH: ContextVar[str | None] = ContextVar("META_ARCH", default=None)


@contextmanager
def meta_tensors_as(arch: str) -> Iterator[None]:
    """Within it, meta tensors count as tensors on a GPU of `arch`: its kernels and tables are used.

    Raises Unsupported where `arch` is not in ARCHS.
    """
    require_arch(arch)
    before = META_ARCH.set(arch)
    try:
        yield
    finally:
        META_ARCH.reset(before)


def gpu_arch(device: torch.device) -> str | None:
    """The architecture of a CUDA device ("sm_90"), or that meta tensors count as; else None."""
    if device.type == "cuda":
        return _capability(device)
    return META_ARCH.get() if device.type == "meta" else None


def arch_of(device: torch.device) -> str:
    """The architecture whose configurations a launch on `device` takes."""
    return gpu_arch(device) or INTERPRETER_ARCH


@cache
def _capability(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    arch = f"sm_{major}{minor}"
    return SAME_KERNELS.get(arch, arch)
