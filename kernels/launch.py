"""A kernel launch as data: run on a device, or compiled ahead of time for another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from .requirements import require

INTERPRETED = knobs.runtime.interpret  # fixed when a kernel is defined, at import


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A Triton kernel with its grid, arguments and options.

    The first axis of `grid` is the one that grows with the tokens: only it may exceed 65535.
    """

    kernel: Any  # a function under @triton.jit, which has no type of its own
    grid: tuple[int, ...]
    arguments: Mapping[str, Tensor | int | float | bool | None]  # by the kernel's argument names
    warps: int
    stages: int = 2  # of a pipelined loop

    @property
    def options(self) -> dict[str, int | bool]:
        """Options of Triton's launcher."""
        # fusion named, since its default differs between triton 3.9 and 3.10
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def require_device(x: Tensor) -> None:
    """Raise Unsupported unless kernels can run on `x`, or it is a meta tensor (shapes only)."""
    require(
        x.device.type in ("cuda", "meta") or INTERPRETED,
        "backend='triton' needs a CUDA tensor, or a process under TRITON_INTERPRET=1",
        device=x.device,
    )


def run(launch: Launch, on: Tensor) -> None:
    """Run `launch` on the device of `on`, which need not be the current one; no-op on meta."""
    if on.is_meta:
        return
    with torch.cuda.device_of(on):
        launch.kernel[launch.grid](**launch.arguments, **launch.options)
