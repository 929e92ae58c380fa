"""One kernel launch as data: the same value runs on a device or is compiled for an absent one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from .requirements import require

INTERPRETED = knobs.runtime.interpret  # settled when a kernel is defined, at import


@dataclass(frozen=True, kw_only=True)
class Launch:
    kernel: Any  # a function under @triton.jit, which has no type of its own
    grid: tuple[int, ...]  # the axis that grows with the tokens first: only it may exceed 65535
    arguments: Mapping[str, Tensor | int | float | bool | None]  # by the kernel's names
    warps: int
    stages: int = 2  # of a pipelined loop

    @property
    def options(self) -> dict[str, int | bool]:
        # fusion named, since its default differs between triton 3.9 and 3.10
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def require_device(x: Tensor) -> None:
    """A meta tensor launches nothing, it asks for shapes."""
    require(
        x.device.type in ("cuda", "meta") or INTERPRETED,
        "backend='triton' needs a CUDA tensor, or a process under TRITON_INTERPRET=1",
        device=x.device,
    )


def run(launch: Launch, on: Tensor) -> None:
    """Runs on the device that holds `on`, which need not be the current one; on meta, nowhere."""
    if on.is_meta:
        return
    with torch.cuda.device_of(on):
        launch.kernel[launch.grid](**launch.arguments, **launch.options)
