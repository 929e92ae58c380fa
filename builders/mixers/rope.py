"""Rotary position embedding (arXiv 2104.09864), the two halves of the rotated part as pairs."""

# B batch, T tokens, H heads, D head width, P = half of the rotated width

import torch
from torch import Tensor


def rotate(x_BTHD: Tensor, *, first: int, rotated: int, theta: float) -> Tensor:
    """Rotate the first `rotated` dimensions by position: the tokens stand from `first` on."""
    wide = torch.promote_types(x_BTHD.dtype, torch.float32)
    pair_P = torch.arange(rotated // 2, device=x_BTHD.device, dtype=wide)
    position_T = torch.arange(first, first + x_BTHD.shape[1], device=x_BTHD.device, dtype=wide)
    angle_TP = position_T[:, None] * theta ** (-2 * pair_P / rotated)
    cos_T1P, sin_T1P = angle_TP.cos()[:, None], angle_TP.sin()[:, None]
    x, kept = x_BTHD.split([rotated, x_BTHD.shape[-1] - rotated], -1)
    a, b = x.to(wide).chunk(2, -1)
    turned = torch.cat([a * cos_T1P - b * sin_T1P, b * cos_T1P + a * sin_T1P], -1)
    return torch.cat([turned.to(x.dtype), kept], -1)
