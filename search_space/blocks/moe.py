"""Mixture of experts: a router sends each token to a few of many small feed-forwards."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from .block import Block, Weight, linear
from .feed_forward import Activation, mlp


class Moe(Block):
    """Token-choice routing to `top_k` of `n_experts` experts, plus `n_shared` that always run.

    `softmax` weighs the chosen experts by their softmax probability, made to sum to one.
    `sigmoid_bias` scores by sigmoid and chooses by score plus a correction bias that balances the
    load without a loss term (DeepSeek-V3, arXiv 2412.19437); that bias is a buffer, not a
    parameter. The shared experts are one feed-forward of width `n_shared * d_expert`.
    """

    kind: Literal["moe"] = "moe"
    n_experts: PositiveInt
    top_k: PositiveInt
    d_expert: PositiveInt
    n_shared: NonNegativeInt = 0
    router: Literal["softmax", "sigmoid_bias"] = "softmax"
    activation: Activation = "swiglu"

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k may be at most n_experts, got top_k={self.top_k}, n_experts={self.n_experts}"
            )
        return self

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        shared = mlp(
            "shared.", self.n_shared * self.d_expert, d_model, self.activation, "ffn.up", "ffn.down"
        )
        return (
            linear("router", self.n_experts, d_model, "router"),
            *mlp(
                "experts.",
                self.d_expert,
                d_model,
                self.activation,
                "experts",
                "experts",
                copies=self.n_experts,
                active=self.top_k,
            ),
            *(shared if self.n_shared else ()),
        )
