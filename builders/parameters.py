"""Creates the parameters and layers of a module by name, with shapes and formats of the record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from ..search_space.architecture import Norm, Precision
from ..search_space.blocks.block import Weight
from ..search_space.operators import NumberFormat
from .layers import LayerNorm, Linear, RMSNorm, StackedLinear

Init = Callable[[Tensor], Tensor]
Named = TypeVar("Named")


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The weights of one module, created on request by name.

    Matrices are drawn from a normal distribution of deviation 0.02, those that write to the
    residual stream divided by the square root of the number of sub-blocks (GPT-2). The order of
    requests is the order in which `generator` draws. On the meta device nothing is drawn.

    `tied` are parameters of an earlier use of a shared block, returned instead of new ones. `kv` is
    the format of the KV cache. `layer` (of `num_layers`) is the layer of the sub-block; `first`
    says that no earlier sub-block has the same symbol.
    """

    weights: Mapping[str, Weight]
    formats: Mapping[str, NumberFormat]
    tied: Mapping[str, nn.Parameter]
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
        """The weights under a prefix, which is removed from their names."""

        def inner(named: Mapping[str, Named]) -> dict[str, Named]:
            return {n.removeprefix(prefix): w for n, w in named.items() if n.startswith(prefix)}

        return replace(
            self,
            weights=inner(self.weights),
            formats=inner(self.formats),
            tied=inner(self.tied),
        )

    def has(self, name: str) -> bool:
        """Whether the record counts a weight of that name."""
        return name in self.weights

    def linear(self, name: str, *, to_residual: bool = False) -> Linear:
        """A linear layer of `name.weight` and, if the record has it, `name.bias`."""
        return Linear(*self.projection(name, to_residual=to_residual, stack=False))

    def stacked(self, name: str, *, to_residual: bool = False) -> StackedLinear:
        """One matrix per expert under one name."""
        return StackedLinear(*self.projection(name, to_residual=to_residual))

    def stack_norm(self, name: str) -> RMSNorm | LayerNorm:
        """A norm of the architecture's type."""
        if self.norm.type == "layer":
            return self.layer_norm(name, self.norm.eps)
        centered = self.norm.zero_centered
        gain = self.constant(f"{name}.weight", 0.0 if centered else 1.0, fp32=False)
        return RMSNorm(gain, self.norm.eps, zero_centered=centered)

    def rms_norm(self, name: str, eps: float | None = None) -> RMSNorm:
        """An RMSNorm that is not zero-centered; `eps` defaults to the architecture's."""
        gain = self.constant(f"{name}.weight", 1.0, fp32=False)
        return RMSNorm(gain, self.norm.eps if eps is None else eps)

    def layer_norm(self, name: str, eps: float) -> LayerNorm:
        """A LayerNorm with weight and bias, whatever the architecture's norm."""
        gain = self.constant(f"{name}.weight", 1.0, fp32=False)
        return LayerNorm(gain, self.constant(f"{name}.bias", 0.0, fp32=False), eps)

    def normal(self, name: str, *, fp32: bool = False) -> nn.Parameter:
        """A parameter drawn like a matrix."""
        return self.create(name, self._normal, fp32=fp32)

    def constant(self, name: str, value: float, *, fp32: bool = True) -> nn.Parameter:
        """A parameter that starts at `value`, by default in at least fp32.

        bfloat16 is too coarse to train rates and logits.
        """
        return self.create(name, lambda x: x.fill_(value), fp32=fp32)

    def uniform(
        self, name: str, low: float, high: float, *, fp32: bool = False, then: Init | None = None
    ) -> nn.Parameter:
        """A parameter drawn uniformly from [low, high), then mapped by `then`."""

        def drawn(x: Tensor) -> Tensor:
            x = x.uniform_(low, high, generator=self.generator)
            return x if then is None else then(x)

        return self.create(name, drawn, fp32=fp32)

    @property
    def fp32_dtype(self) -> torch.dtype:
        """float32, or float64 in a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    def buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros on the module's device."""
        return torch.zeros(shape, device=self.device, dtype=dtype)

    def _normal(self, x: Tensor) -> Tensor:
        return x.normal_(std=0.02, generator=self.generator)

    def projection(
        self, name: str, *, to_residual: bool = False, stack: bool = True
    ) -> tuple[nn.Parameter, nn.Parameter | None, NumberFormat, Precision]:
        """Arguments of a `Projection`; with `stack` all copies of the weight in one tensor."""
        size = self.num_sub_blocks**-0.5 if to_residual else 1.0
        matrix = self.create(f"{name}.weight", lambda x: self._normal(x).mul_(size), stack=stack)
        offset = None
        if self.has(f"{name}.bias"):
            offset = self.create(f"{name}.bias", torch.Tensor.zero_, stack=stack)
        return matrix, offset, self.formats.get(f"{name}.weight", "bf16"), self.plan

    def create(
        self, name: str, init: Init, *, fp32: bool = False, stack: bool = False
    ) -> nn.Parameter:
        """The parameter of that name: the tied one, or `init` of an empty tensor of its shape.

        With `fp32` it has at least float32 whatever the model's dtype.
        """
        if name in self.tied:
            return self.tied[name]
        weight = self.weights[name]
        shape = (weight.copies, *weight.shape) if stack else weight.shape
        empty = torch.empty(
            shape, device=self.device, dtype=self.fp32_dtype if fp32 else self.dtype
        )
        return nn.Parameter(empty if empty.is_meta else init(empty))


def inverse_softplus_of_exp(x: Tensor) -> Tensor:
    """y with softplus(y) = e^x: initial bias of a rate that is drawn in the logarithm."""
    rate = x.exp()
    return rate + torch.log(-torch.expm1(-rate))
