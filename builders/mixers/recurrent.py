"""What recurrent mixers share: the short convolution in front, the rates of decay, the cache."""

# B batch, T tokens, W width of the convolution less one, N channels, D model width,
# H value heads, K key width, V value width

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...search_space.blocks.gated_deltanet import GatedDeltaNet
from ...search_space.blocks.mamba2 import Mamba2
from ..body import Body
from ..parts import Parts
from .recurrence import chunked, step

Recurrence = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]
]


@dataclass(kw_only=True)
class RecurrentCache:
    tail_BWN: Tensor  # the last inputs of the convolution
    state_BHKV: Tensor  # fp32 or wider


class Recurrent(Body):
    """A mixer says in `mix` what it feeds to the recurrence; `mix` reads and renews the cache."""

    def __init__(
        self, block: Mamba2 | GatedDeltaNet, parts: Parts, state_HKV: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.conv_width, self.conv_tail, self.state_HKV = (
            block.conv_width,
            block.conv - 1,
            state_HKV,
        )
        self.in_proj = parts.linear("in_proj")
        self.conv = ShortConvolution(parts)
        # A in 1 ... 16 and dt log-uniform in 0.001 ... 0.1, as Mamba-2 starts them
        self.A_log = nn.Parameter(parts.uniform("A_log", 1, 16, parts.wide).log())
        dt = parts.uniform("dt_bias", math.log(1e-3), math.log(1e-1), parts.wide).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.norm = parts.norm("norm")
        self.out_proj = parts.linear("out_proj", to_residual=True)

    def mix(self, x_BTD: Tensor, cache: RecurrentCache, recur: Recurrence) -> Tensor:
        raise NotImplementedError

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.prefill(x_BTD)[0]

    def prefill(self, x_BTD: Tensor) -> tuple[Tensor, RecurrentCache]:
        B = x_BTD.shape[0]
        cache = RecurrentCache(
            tail_BWN=x_BTD.new_zeros(B, self.conv_tail, self.conv_width),
            state_BHKV=x_BTD.new_zeros(B, *self.state_HKV, dtype=self.A_log.dtype),
        )
        return self.mix(x_BTD, cache, chunked), cache

    def step(self, x_BTD: Tensor, cache: RecurrentCache) -> Tensor:
        return self.mix(x_BTD, cache, step)

    def rates(self, raw_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """(dt, decay), both BTH: dt = softplus(raw + bias), decay = -e^{A_log} dt."""
        dt_BTH = F.softplus(raw_BTH.to(self.dt_bias.dtype) + self.dt_bias)
        return dt_BTH, -self.A_log.exp() * dt_BTH


class ShortConvolution(nn.Module):
    """Each channel mixed with its own last few tokens, then SiLU."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        bound = parts.weights["conv.weight"].weight.shape[1] ** -0.5
        self.weight = nn.Parameter(parts.uniform("conv.weight", -bound, bound, parts.dtype))
        self.bias = None
        if "conv.bias" in parts.weights:
            self.bias = nn.Parameter(parts.uniform("conv.bias", -bound, bound, parts.dtype))

    def forward(self, x_BTN: Tensor, tail_BWN: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the mixed tokens and the tail that comes before the next ones."""
        x_BTN = torch.cat([tail_BWN, x_BTN], 1)
        y_BNT = F.conv1d(x_BTN.mT, self.weight[:, None], self.bias, groups=len(self.weight))
        return F.silu(y_BNT.mT), x_BTN[:, -tail_BWN.shape[1] :].clone()
