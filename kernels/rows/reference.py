"""What each operator means, in plain torch: the specification that every kernel is held against.

Arithmetic runs in float32, or in float64 where the input is float64; a result is rounded once, to
the dtype of the operator's first input. Autograd of these lines is the meaning of every gradient.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool = False) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 2019).

    `zero_centered`: the stored weight is the distance from one, the factor is 1 + weight.
    """
    wide = _wide(x)
    factor = 1 + weight.to(wide.dtype) if zero_centered else weight.to(wide.dtype)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd * factor).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, zero_centered: bool = False
) -> tuple[Tensor, Tensor]:
    """(normed, summed): summed = x + residual in their dtype, normed = rms_norm(summed)."""
    summed = x + residual
    return rms_norm(summed, weight, eps, zero_centered), summed


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, where silu(z) = z * sigmoid(z) (Shazeer, 2020)."""
    wide = _wide(gate)
    return (wide * torch.sigmoid(wide) * up.to(wide.dtype)).to(gate.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
