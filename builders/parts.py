"""What modules are made of: projections, norms and vectors, each as the record counts it."""

# M rows (tokens), I features in, O features out, E experts

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.experts import op as experts
from ..kernels.experts.groups import Groups
from ..kernels.rows import op as rows
from ..kernels.scaled import op as scaled
from ..search_space.architecture import Norm, Precision
from ..search_space.blocks.block import Weight
from ..search_space.operators import NumberFormat
from .precision import TILES, has_fp8, quantized, quantized_fp4

Init = Callable[[Tensor], Tensor]
Named = TypeVar("Named")


class Projection(nn.Module):
    """A weight [..., O, I], and a bias where the record has one.

    In FP8 its products are of FP8 factors and summed in fp32; in FP4 the weight alone is rounded.
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
        """Activation and weight as the product sees them."""
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
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if self.format == "fp8" and has_fp8(x.device):
            y = scaled.scaled_linear(x, self.weight, self.plan.recipe)
        else:
            y = F.linear(*self.factors(x)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class StackedLinear(Projection):
    """One matrix an expert, weight_EOI, for rows that lie sorted by expert."""

    def forward(self, x_MI: Tensor, groups: Groups) -> Tensor:
        factor_MI, weight_EOI = self.factors(x_MI)
        y_MO = experts.grouped_linear(factor_MI, weight_EOI, self.bias, groups)
        return y_MO.to(x_MI.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, or * (1 + weight) where it is zero-centerd."""

    def __init__(self, weight: nn.Parameter, eps: float, *, zero_centered: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.eps, self.zero_centered = eps, zero_centered

    def forward(self, x: Tensor) -> Tensor:
        return rows.rms_norm(x, self.weight, self.eps, self.zero_centered)


class LayerNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rows.layer_norm(x, self.weight, self.bias, self.eps)


def normed_without_weight(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without a gain."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Hands a module its weights by name: shape and format from the record, values drawn anew.

    Matrices are normal with deviation 0.02; those that write to the residual stream are proxy_fields by
    the square root of the number of sub-blocks, as in GPT-2. On the meta device nothing is drawn.
    `lent` are parameters of an earlier block that this one shares. `layer` of `num_layers` is the
    place of the sub-block; `first` says that no earlier one is of the same symbol.
    """

    weights: Mapping[str, Weight]
    formats: Mapping[str, NumberFormat]
    lent: Mapping[str, nn.Parameter]
    kv: NumberFormat
    plan: Precision
    norm: Norm
    layer: int
    num_layers: int
    first: bool
    num_sub_blocks: int
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator | None

    def under(self, prefix: str) -> Self:
        """The weights whose names begin with a prefix, without it."""

        def inner(named: Mapping[str, Named]) -> dict[str, Named]:
            return {n.removeprefix(prefix): w for n, w in named.items() if n.startswith(prefix)}

        return replace(
            self,
            weights=inner(self.weights),
            formats=inner(self.formats),
            lent=inner(self.lent),
        )

    def has(self, name: str) -> bool:
        return name in self.weights

    def linear(self, name: str, *, to_residual: bool = False) -> Linear:
        return Linear(*self.matrices(name, to_residual=to_residual, stack=False))

    def stacked(self, name: str, *, to_residual: bool = False) -> StackedLinear:
        return StackedLinear(*self.matrices(name, to_residual=to_residual))

    def stack_norm(self, name: str) -> RMSNorm | LayerNorm:
        """A norm of the kind that the stack has."""
        if self.norm.type == "layer":
            return self.layer_norm(name, self.norm.eps)
        centerd = self.norm.zero_centered
        gain = self.filled(f"{name}.weight", 0.0 if centerd else 1.0, wide=False)
        return RMSNorm(gain, self.norm.eps, zero_centered=centerd)

    def rms_norm(self, name: str, eps: float | None = None) -> RMSNorm:
        """An RMSNorm with a plain gain, whatever the stack has, and its eps unless given one."""
        gain = self.filled(f"{name}.weight", 1.0, wide=False)
        return RMSNorm(gain, self.norm.eps if eps is None else eps)

    def layer_norm(self, name: str, eps: float) -> LayerNorm:
        gain = self.filled(f"{name}.weight", 1.0, wide=False)
        return LayerNorm(gain, self.filled(f"{name}.bias", 0.0, wide=False), eps)

    def normal(self, name: str, *, wide: bool = False) -> nn.Parameter:
        return self.made(name, self._normal, wide=wide)

    def filled(self, name: str, value: float, *, wide: bool = True) -> nn.Parameter:
        """At least fp32 unless told otherwise: bfloat16 is too coarse to learn rates and logits."""
        return self.made(name, lambda x: x.fill_(value), wide=wide)

    def uniform(
        self, name: str, low: float, high: float, *, wide: bool = False, then: Init | None = None
    ) -> nn.Parameter:
        def drawn(x: Tensor) -> Tensor:
            x = x.uniform_(low, high, generator=self.generator)
            return x if then is None else then(x)

        return self.made(name, drawn, wide=wide)

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=dtype)

    def _normal(self, x: Tensor) -> Tensor:
        return x.normal_(std=0.02, generator=self.generator)

    def matrices(
        self, name: str, *, to_residual: bool = False, stack: bool = True
    ) -> tuple[nn.Parameter, nn.Parameter | None, NumberFormat, Precision]:
        """What a projection is made of; with `stack` all its copies in one tensor."""
        size = self.num_sub_blocks**-0.5 if to_residual else 1.0
        matrix = self.made(f"{name}.weight", lambda x: self._normal(x).mul_(size), stack=stack)
        offset = None
        if self.has(f"{name}.bias"):
            offset = self.made(f"{name}.bias", torch.Tensor.zero_, stack=stack)
        return matrix, offset, self.formats.get(f"{name}.weight", "bf16"), self.plan

    def made(
        self, name: str, init: Init, *, wide: bool = False, stack: bool = False
    ) -> nn.Parameter:
        """The parameter of that name: lent, or made by `init` from a tensor of its shape."""
        if name in self.lent:
            return self.lent[name]
        weight = self.weights[name]
        shape = (weight.copies, *weight.shape) if stack else weight.shape
        empty = torch.empty(shape, device=self.device, dtype=self.wide if wide else self.dtype)
        return nn.Parameter(empty if empty.is_meta else init(empty))


def inverse_softplus_of_exp(x: Tensor) -> Tensor:
    """y with softplus(y) = e^x: how a bias starts whose rate is drawn in the logarithm."""
    rate = x.exp()
    return rate + torch.log(-torch.expm1(-rate))
