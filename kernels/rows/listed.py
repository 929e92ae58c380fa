"""The row kernels at the shapes that are compiled for every target."""

from collections.abc import Iterator

import torch

from ..launch import Launch
from . import norm, swiglu

# a head, a width that divides nothing, a model, the widest rows
NORM_SHAPES = ((65_536, 128), (8192, 1000), (8192, 4096), (8192, 8192), (8192, 16_384))
SWIGLU_SHAPES = ((65_536, 60), (8192, 14_336))


def launches(arch: str) -> Iterator[tuple[str, str, Launch]]:
    """(kernel, shape, launch): every kernel at the shapes above, in bfloat16 and float32."""
    for dtype in (torch.bfloat16, torch.float32):
        for shape in NORM_SHAPES:
            label = f"{shape[0]} x {shape[1]} {dtype}"
            for name, launch in _norm_launches(arch, shape, dtype).items():
                yield name, label, launch
        for shape in SWIGLU_SHAPES:
            label = f"{shape[0]} x {shape[1]} {dtype}"
            h = torch.empty(shape, dtype=dtype, device="meta")
            yield "swiglu_forward", label, swiglu.forward_launch(arch, h, h, h)
            yield "swiglu_backward", label, swiglu.backward_launch(arch, h, h, h, h, h)


def _norm_launches(arch: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Launch]:
    num_rows, width = shape
    x = torch.empty(shape, dtype=dtype, device="meta")
    rstd = torch.empty(num_rows, device="meta")
    partial = torch.empty(norm.backward_programs(arch, num_rows), width, device="meta")
    forward, backward = norm.forward_launch, norm.backward_launch
    forwards = {
        "rms_norm_forward": forward(arch, x, None, x[0], x, None, rstd, 1e-6, False),
        "add_rms_norm_forward": forward(arch, x, x, x[0], x, x, rstd, 1e-6, False),
    }
    if width > norm.WIDEST_WITH_GRADIENT:
        return forwards
    return forwards | {
        "rms_norm_backward": backward(arch, x, None, x, x[0], rstd, x, partial, False),
        "add_rms_norm_backward": backward(arch, x, x, x, x[0], rstd, x, partial, False),
    }
