"""Test-time training: a mixer whose state is a linear model that is trained on each token."""

from collections.abc import Iterator
from math import ceil
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ..operators import Gemm, NumberFormat, Operator, Point, Rows, SequentialGemm
from .block import Block, Cache, Weight, biases, linear, make_divisible, vector
from .heads import HeadLayout, head_rows, linear_mixer_heads
from .recurrent import convolution


class TTTLinear(Block):
    """TTT-Linear (arXiv 2407.04620): inner linear models W of head_dim x head_dim.

    Each token takes a gradient step of |LN(k W) + k - v|^2 at the W that its mini-batch began with,
    and reads q + LN(q W). The learning rate is learned per token and head.
    """

    tp_sharded_dims: ClassVar[tuple[str, ...]] = ("heads",)

    kind: Literal["ttt_linear"] = "ttt_linear"
    heads: PositiveInt
    """Inner models."""
    head_dim: PositiveInt
    """Dimension of a head."""
    mini_batch: PositiveInt = 16
    """Tokens whose gradients are taken at the same W."""
    conv: int = Field(default=4, ge=2)
    """Width of the causal convolution over q, k and v."""

    @property
    def letter(self) -> str:
        return "D"

    @property
    def width(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        return (
            linear("in_proj", 3 * self.width, d_model, "mixer.in"),  # q, k, v
            Weight(name="conv.weight", shape=(3 * self.width, self.conv)),
            linear("rate_proj", self.heads, d_model, "gate"),
            *biases({"rate_proj": self.heads}),
            Weight(name="W", shape=(self.heads, self.head_dim, self.head_dim)),
            Weight(name="inner_norm.weight", shape=(self.heads, self.head_dim)),
            Weight(name="inner_norm.bias", shape=(self.heads, self.head_dim)),
            vector("norm.weight", self.width),
            linear("gate_proj", self.width, d_model, "mixer.in"),
            linear("out_proj", d_model, self.width, "mixer.out"),
        )

    def head_layout(self) -> dict[str, HeadLayout]:
        size = (self.heads, self.head_dim)
        return linear_mixer_heads(size, size) | {"gate_proj": head_rows(z=size)}

    def cache(self, d_model: int) -> Cache:
        """W, its gradient within the current mini-batch, and the convolution tail."""
        return Cache(
            state_elements=2 * self.heads * self.head_dim**2,
            conv_elements=(self.conv - 1) * 3 * self.width,
        )

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        yield convolution(point, 3 * self.width, self.conv)
        rows, K = point.rows * self.heads, self.head_dim
        for _ in ("prediction", "gradient of W", "read"):
            yield Gemm(m=rows, n=K, k=K)
        if not point.decode:  # within a mini-batch, gradients of tokens change reads of later ones
            whole, rest = divmod(point.tokens, self.mini_batch)
            sequences = point.batch * self.heads
            for count, size in ((whole, self.mini_batch), (1, rest)):
                if count and size:
                    yield Gemm(m=sequences * count * size, n=size, k=K)
                    yield Gemm(m=sequences * count * size, n=K, k=size)
            yield SequentialGemm(steps=ceil(point.tokens / self.mini_batch), n=self.width, k=K)
        yield Rows(rows=point.rows, elements=9 * self.width)

    def operator_flops(self, d_model: int, context: int) -> float:
        """With the update of W, which runs as a sum and not as a product."""
        return super().operator_flops(d_model, context) + 2 * self.heads * self.head_dim**2

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        head_dim = make_divisible(self.head_dim * width_fraction)
        return {
            "heads": max(1, round(self.width * width_fraction / head_dim)),
            "head_dim": head_dim,
        }
