"""Projections and norms that the bodies are built from."""

# M rows (tokens), I features in, O features out, E experts

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.experts import op as experts
from ..kernels.experts.groups import Groups
from ..kernels.rows import op as rows
from ..kernels.scaled import op as scaled
from ..search_space.architecture import Precision
from ..search_space.operators import NumberFormat
from .precision import TILES, has_fp8, quantized, quantized_fp4


class Projection(nn.Module):
    """A weight [..., O, I] and an optional bias, in the number format of the precision plan.

    FP8 multiplies activations and weights rounded to e4m3 and sums in fp32; FP4 rounds the weight
    only.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        format_: NumberFormat,
        plan: Precision,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.format: NumberFormat = format_
        self.plan = plan

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(activation, weight) after rounding to the format."""
        match self.format:
            case "fp8":
                of_x, of_weight = TILES[self.plan.recipe]
                x_MI = x.float().flatten(0, -2)
                weight = quantized(self.weight.float(), of_weight)
                return quantized(x_MI, of_x).view(x.shape), weight
            case "fp4":
                return x, quantized_fp4(self.weight, self.plan.fp4_scales)
            case _:
                return x, self.weight


class Linear(Projection):
    """x W^T + b, in FP8 by a scaled matmul where the device has one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.format == "fp8" and has_fp8(x.device):
            y = scaled.scaled_linear(x, self.weight, self.plan.recipe)
        else:
            y = F.linear(*self.factors(x)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class StackedLinear(Projection):
    """One matrix per expert, weight_EOI, applied to rows sorted by expert."""

    def forward(self, x_MI: Tensor, groups: Groups) -> Tensor:
        factor_MI, weight_EOI = self.factors(x_MI)
        y_MO = experts.grouped_linear(factor_MI, weight_EOI, self.bias, groups)
        return y_MO.to(x_MI.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, or * (1 + weight) if zero-centered (arXiv 1910.07467)."""

    def __init__(self, weight: nn.Parameter, eps: float, *, zero_centered: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.eps, self.zero_centered = eps, zero_centered

    def forward(self, x: Tensor) -> Tensor:
        return rows.rms_norm(x, self.weight, self.eps, self.zero_centered)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual) in one kernel."""
        return rows.add_rms_norm(x, residual, self.weight, self.eps, self.zero_centered)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias over the last dimension."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rows.layer_norm(x, self.weight, self.bias, self.eps)


def rms_normalized(x: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension without a weight, computed in at least fp32."""
    fp32 = x.to(torch.promote_types(x.dtype, torch.float32))
    return (fp32 * torch.rsqrt(fp32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
