"""Mixture of experts: a router sends each token to a few of many small feed-forwards."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ..document import Terse
from ..operators import Experts, NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, grained, linear, vector
from .feed_forward import Activation, mlp, up_projections

Router = Literal[
    "softmax",
    "sigmoid",
    "sigmoid_bias",
    "sqrtsoftplus_bias",
    "sparsemixer",
    "hash",
    "expert_choice",
]
MAX_TWIN_EXPERTS = 16


class Groups(Terse):
    """Group-limited routing (arXiv 2405.04434): only the `top` best of `n` groups are candidates."""

    n: PositiveInt
    top: PositiveInt

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.top > self.n:
            raise ValueError(f"top may be at most n, got top={self.top}, n={self.n}")
        return self


class MoE(Block):
    """Token-choice routing to `top_k` of `n_experts` experts, plus `n_shared` that always run.

    `softmax` weighs the chosen experts by their softmax probability; `sigmoid` by the sigmoid of
    their logit. `sigmoid_bias` and `sqrtsoftplus_bias` choose by score plus a correction bias that
    balances the load without a loss term (DeepSeek-V3, arXiv 2412.19437); that bias is a buffer,
    not a parameter. `hash` chooses by the token's id, and its router only weighs. `sparsemixer` is
    Phi-3.5-MoE's top-2. With `expert_choice` each expert takes its best tokens of a whole text (arXiv
    2202.09368): that looks ahead, so such a model trains but does not decode. `norm_topk` makes the weights of the chosen sum to one, `scale` multiplies
    them; with `scale_input` they multiply the input of an expert, not its output (Llama 4).
    `capacity` bounds the tokens that an expert takes of a sequence so far to that multiple of an
    even share; a token beyond it skips the expert (arXiv 2101.03961). Tokens may also choose one of
    `n_zero` experts that give back their input (LongCat-Flash). An expert of several
    `expert_layers` is so many feed-forwards, all but the last beside a residual. Where uses share
    `copies` of the block, experts are shared and each use has a router of its own.

    The shared experts are one feed-forward of width `d_shared`, by default `n_shared * d_expert`;
    `shared_gate` multiplies it by a sigmoid of the input. With `latent`, routed experts work in
    that width, between one projection down and one up (`latent_norm`: an RMSNorm after the first).
    `router_scale` is Gemma 4's router: it norms its input without a weight, and has learned scales
    of the input and of each expert.
    """

    kind: Literal["moe"] = "moe"
    n_experts: PositiveInt
    top_k: PositiveInt
    d_expert: PositiveInt
    expert_layers: PositiveInt = 1
    n_zero: NonNegativeInt = 0
    n_shared: NonNegativeInt = 0
    d_shared: PositiveInt | None = None
    shared_gate: bool = False
    router: Router = "softmax"
    norm_topk: bool = True
    scale: float = Field(default=1.0, gt=0)
    scale_input: bool = False
    capacity: float | None = Field(default=None, gt=0)
    groups: Groups | None = None
    latent: PositiveInt | None = None
    latent_norm: bool = False
    router_bias: bool = False
    router_scale: bool = False
    expert_bias: bool = False
    activation: Activation = "swiglu"
    limit: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k may be at most n_experts, got top_k={self.top_k}, n_experts={self.n_experts}"
            )
        if not self.n_shared and (self.shared_gate or self.d_shared):
            raise ValueError("shared_gate and d_shared want n_shared of at least 1, got n_shared=0")
        if self.groups and self.n_experts % self.groups.n:
            raise ValueError(
                f"groups.n must divide n_experts, got n_experts={self.n_experts}, n={self.groups.n}"
            )
        if self.groups and self.top_k > self.groups.top * self.n_experts // self.groups.n:
            raise ValueError(
                f"top_k must fit into groups.top groups, got top_k={self.top_k}, "
                f"{self.groups.top} groups of {self.n_experts // self.groups.n}"
            )
        if self.groups and self.n_zero:
            raise ValueError("groups and n_zero exclude each other, got both")
        if self.latent_norm and self.latent is None:
            raise ValueError("latent_norm wants latent, got latent=None")
        return self

    @property
    def letter(self) -> str:
        return "E"

    @property
    def shared_width(self) -> int:
        """The width of all shared experts together; 0 without any."""
        return self.n_shared and (self.d_shared or self.n_shared * self.d_expert)

    @property
    def expert_prefixes(self) -> tuple[str, ...]:
        """The names of an expert's layers."""
        layers = self.expert_layers
        return ("experts.",) if layers == 1 else tuple(f"experts.{i}." for i in range(layers))

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        n, latent, logits = self.n_experts, self.latent, self.n_experts + self.n_zero
        shared = mlp("shared.", self.shared_width, d_model, self.activation, "ffn.up", "ffn.down")
        experts = [
            weight
            for prefix in self.expert_prefixes
            for weight in mlp(
                prefix,
                self.d_expert,
                latent or d_model,
                self.activation,
                "experts",
                "experts",
                copies=n,
                active=self.top_k,
                bias=self.expert_bias,
            )
        ]
        around = (
            (
                linear("latent_in_proj", latent, d_model, "ffn.up"),
                linear("latent_out_proj", d_model, latent, "ffn.down"),
                *((vector("latent_norm.weight", latent),) if self.latent_norm else ()),
            )
            if latent
            else ()
        )
        return (
            linear("router", logits, d_model, "router", owner="use"),
            *((vector("router.bias", logits),) if self.router_bias else ()),
            *(
                (vector("router.input_scale", d_model), vector("router.expert_scale", n))
                if self.router_scale
                else ()
            ),
            *experts,
            *around,
            *(shared if self.n_shared else ()),
            *((linear("shared_gate", 1, d_model, "router"),) if self.shared_gate else ()),
        )

    def shard(self, devices: int) -> Self:
        """Whole experts on each device; of a shared one its share of the width."""
        if self.n_experts % devices or (self.n_shared and self.shared_width % devices):
            raise ValueError(
                f"{devices} devices must divide n_experts and the shared width, got "
                f"n_experts={self.n_experts}, shared width {self.shared_width if self.n_shared else 0}"
            )
        n_experts = self.n_experts // devices
        changed = {
            "n_experts": n_experts,
            "top_k": min(n_experts, max(1, round(self.top_k / devices))),
            "d_shared": (self.n_shared and self.shared_width // devices) or None,
            "groups": None,
        }
        return self.model_validate(self.model_dump() | changed)

    def cache(self, d_model: int) -> Cache:
        """With a capacity, how many tokens each expert has had of a sequence."""
        counted = self.capacity is not None and self.router != "expert_choice"
        return Cache(state_elements=(self.n_experts + self.n_zero) * counted)

    def operators(
        self, d_model: int, point: Point, *, kv: NumberFormat, experts: NumberFormat
    ) -> Iterator[Operator]:
        inputs = len(up_projections(self.activation))
        yield Experts(
            rows=point.rows,
            width=self.latent or d_model,
            d_expert=self.d_expert,
            top_k=self.top_k,
            n_experts=self.n_experts,
            matrices=(inputs + 1) * self.expert_layers,
            weights=experts,
        )
        if self.n_shared:
            yield Rows(rows=point.rows, elements=(inputs + 1) * self.shared_width)

    def proxy_fields(self, share: float, context_fraction: float) -> dict[str, Any]:
        fewer = max(1.0, self.n_experts / MAX_TWIN_EXPERTS)
        top_k = max(1, round(self.top_k / fewer))
        d_expert = grained(self.top_k * self.d_expert * share / top_k)
        n_experts, groups = max(top_k, round(self.n_experts / fewer)), None
        if self.groups and n_experts % self.groups.n == 0:
            of_one = n_experts // self.groups.n
            top = max(-(-top_k // of_one), round(self.groups.top))
            groups = {"n": self.groups.n, "top": min(self.groups.n, top)}
        return {
            "n_experts": n_experts,
            "top_k": top_k,
            "d_expert": d_expert,
            "d_shared": (self.n_shared and grained(self.shared_width * share)) or None,
            "groups": groups,
            "latent": self.latent and grained(self.latent * share),
        }
