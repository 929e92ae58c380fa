"""Mamba-2: a state-space mixer with one scalar decay a head."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .block import Block, Cache, Weight, linear, vector


class Mamba2(Block):
    """The SSD layer of arXiv 2405.21060: `heads` states of `head_dim` x `d_state`.

    B and C are shared by the heads of each of `groups`; a causal convolution of width `conv`
    runs over x, B and C; a gated RMSNorm precedes the output projection.
    """

    kind: Literal["mamba2"] = "mamba2"
    heads: PositiveInt
    head_dim: PositiveInt
    d_state: PositiveInt
    groups: PositiveInt = 1
    conv: int = Field(default=4, ge=2)

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if self.heads % self.groups:
            raise ValueError(
                f"groups must divide heads, got heads={self.heads}, groups={self.groups}"
            )
        return self

    @property
    def d_inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        return self.d_inner + 2 * self.groups * self.d_state

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        projected = self.d_inner + self.conv_width + self.heads  # z; x, B, C; dt
        return (
            linear("in_proj", projected, d_model, "mixer.in"),
            Weight(name="conv.weight", shape=(self.conv_width, self.conv)),
            vector("conv.bias", self.conv_width),
            vector("A_log", self.heads),
            vector("D", self.heads),
            vector("dt_bias", self.heads),
            vector("norm.weight", self.d_inner),
            linear("out_proj", d_model, self.d_inner, "mixer.out"),
        )

    def cache(self) -> Cache:
        return Cache(
            state_elements=self.heads * self.head_dim * self.d_state,
            conv_elements=(self.conv - 1) * self.conv_width,
        )

    def mixing_flops(self, visible: float) -> float:
        """The recurrence itself: decay, write and read of the state, and the convolution."""
        return 6 * self.d_inner * self.d_state + 2 * self.conv * self.conv_width
