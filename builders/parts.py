"""What modules are made of: projections, norms and vectors, each as the record counts it."""

# M rows (tokens), I features in, O features out, E experts

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.rows import op as rows
from ..search_space.accounting import PlacedWeight
from .precision import TILES, Recipe, quantised


class Projection(nn.Module):
    """A weight [..., O, I]; with a recipe, its products are of FP8 factors and summed in fp32."""

    def __init__(self, weight: Tensor, recipe: Recipe | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.recipe: Recipe | None = recipe

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activation and weight as the product sees them."""
        if self.recipe is None:
            return x, self.weight
        of_x, of_weight = TILES[self.recipe]
        x_MI = x.float().flatten(0, -2)
        return quantised(x_MI, of_x).view(x.shape), quantised(self.weight.float(), of_weight)


class Linear(Projection):
    """x W^T."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*self.factors(x)).to(x.dtype)


class StackedLinear(Projection):
    """One matrix an expert, weight_EOI, for rows that lie sorted by expert."""

    def forward(self, x_MI: Tensor, rows_of_expert: list[int]) -> Tensor:
        # A loop and not F.grouped_mm: that refuses float64 and rows that are no multiple of 16
        # bytes, and on a CPU it is the slower of the two.
        factor_MI, weight_EOI = self.factors(x_MI)
        pairs = zip(factor_MI.split(rows_of_expert), weight_EOI, strict=True)
        return torch.cat([F.linear(rows, matrix) for rows, matrix in pairs]).to(x_MI.dtype)


class RmsNorm(nn.Module):
    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rows.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Hands a module its weights by name: shape and precision from the record, values drawn anew.

    Matrices are normal with deviation 0.02; those that write to the residual stream are smaller by
    the square root of the number of sub-blocks, as in GPT-2. On the meta device nothing is drawn.
    """

    weights: Mapping[str, PlacedWeight]
    fp8_cache: bool
    recipe: Recipe
    norm_eps: float
    num_sub_blocks: int
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator | None

    def linear(self, name: str, *, to_residual: bool = False) -> Linear:
        return Linear(*self._projection(name, (), to_residual))

    def stacked(self, name: str, *, to_residual: bool = False) -> StackedLinear:
        copies = self.weights[f"{name}.weight"].weight.copies
        return StackedLinear(*self._projection(name, (copies,), to_residual))

    def normal(self, name: str, stack: tuple[int, ...] = ()) -> Tensor:
        return self._empty(name, self.dtype, stack).normal_(std=0.02, generator=self.generator)

    def norm(self, name: str) -> RmsNorm:
        return RmsNorm(self._empty(f"{name}.weight", self.dtype).fill_(1), self.norm_eps)

    def filled(self, name: str, value: float) -> nn.Parameter:
        return nn.Parameter(self._empty(name, self.wide).fill_(value))

    def uniform(self, name: str, low: float, high: float, dtype: torch.dtype) -> Tensor:
        return self._empty(name, dtype).uniform_(low, high, generator=self.generator)

    @property
    def wide(self) -> torch.dtype:
        """At least fp32: of rates and logits, which bfloat16 is too coarse to learn."""
        return torch.promote_types(self.dtype, torch.float32)

    def _projection(
        self, name: str, stack: tuple[int, ...], to_residual: bool
    ) -> tuple[Tensor, Recipe | None]:
        name = f"{name}.weight"
        weight = self.normal(name, stack)
        weight *= self.num_sub_blocks**-0.5 if to_residual else 1.0
        return weight, self.recipe if self.weights[name].format == "fp8" else None

    def _empty(self, name: str, dtype: torch.dtype, stack: tuple[int, ...] = ()) -> Tensor:
        shape = (*stack, *self.weights[name].weight.shape)
        return torch.empty(shape, device=self.device, dtype=dtype)
