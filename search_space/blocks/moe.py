"""Mixture of experts: a router assigns each token to a few of many feed-forwards."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ..document import Terse
from ..operators import Experts, NumberFormat, Operator, Point, Rows
from .block import Block, Cache, Weight, linear, make_divisible, vector
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
MAX_PROXY_EXPERTS = 16


class Groups(Terse):
    """Group-limited routing (arXiv 2405.04434): only experts of the best groups are candidates."""

    n: PositiveInt
    """Groups that the experts are divided into."""
    top: PositiveInt
    """Groups whose experts are candidates."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.top > self.n:
            raise ValueError(f"top may be at most n, got top={self.top}, n={self.n}")
        return self


class MoE(Block):
    """Mixture of experts: routing to `top_k` of `n_experts` experts, plus shared experts."""

    kind: Literal["moe"] = "moe"
    n_experts: PositiveInt
    """Routed experts."""
    top_k: PositiveInt
    """Experts per token."""
    d_expert: PositiveInt
    """Hidden features of an expert."""
    expert_layers: PositiveInt = 1
    """Feed-forwards that an expert consists of, all but the last with a residual."""
    n_zero: NonNegativeInt = 0
    """Further experts that return their input (LongCat-Flash)."""
    n_shared: NonNegativeInt = 0
    """Shared experts, which every token uses; built as one feed-forward."""
    d_shared: PositiveInt | None = None
    """Hidden features of all shared experts together; null: n_shared * d_expert."""
    shared_gate: bool = False
    """Sigmoid gate of the input on the output of the shared experts."""
    router: Router = "softmax"
    """Router. `softmax` weights experts by their probability, `sigmoid` by the sigmoid of the
    logit; `sigmoid_bias` and `sqrtsoftplus_bias` choose by score plus a load-balancing bias, which
    is a buffer (DeepSeek-V3, arXiv 2412.19437); `hash` chooses by token id and only weights by
    score; `sparsemixer` is Phi-3.5-MoE's; with `expert_choice` experts choose tokens of a whole
    text (arXiv 2202.09368), so the model trains but cannot decode."""
    norm_topk: bool = True
    """Normalize the weights of the chosen experts to a sum of one."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the expert weights."""
    scale_input: bool = False
    """Apply the weights to the input of an expert, not to its output (Llama 4)."""
    capacity: float | None = Field(default=None, gt=0)
    """Tokens of a sequence that an expert takes, as a multiple of an even split; further tokens
    skip it (arXiv 2101.03961)."""
    groups: Groups | None = None
    """Group-limited routing."""
    latent: PositiveInt | None = None
    """Width that routed experts work in, between one shared projection down and one up."""
    latent_norm: bool = False
    """RMSNorm after the projection into the latent width."""
    router_bias: bool = False
    """Bias of the router's projection."""
    router_scale: bool = False
    """Gemma 4's router: weightless norm of the input, learned scales of the input and of each
    expert."""
    expert_bias: bool = False
    """Biases of the experts' projections."""
    activation: Activation = "swiglu"
    """Activation of all experts, see `ffn`."""
    limit: float | None = Field(default=None, gt=0)
    """Bound that gate and up projections are clamped to."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k may be at most n_experts, got top_k={self.top_k}, "
                f"n_experts={self.n_experts}"
            )
        if not self.n_shared and (self.shared_gate or self.d_shared):
            raise ValueError("shared_gate and d_shared need n_shared of at least 1, got n_shared=0")
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
            raise ValueError("latent_norm needs latent, got latent=None")
        return self

    @property
    def letter(self) -> str:
        return "E"

    @property
    def shared_width(self) -> int:
        """Hidden features of all shared experts together; 0 without any."""
        return self.n_shared and (self.d_shared or self.n_shared * self.d_expert)

    @property
    def expert_prefixes(self) -> tuple[str, ...]:
        """The prefixes of the parameter names of an expert's layers."""
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
        """Whole experts on each device, and a part of the width of shared ones."""
        if self.n_experts % devices or (self.n_shared and self.shared_width % devices):
            raise ValueError(
                f"{devices} devices must divide n_experts and the shared width, got "
                f"n_experts={self.n_experts}, shared width {self.shared_width}"
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
        """With a capacity, the tokens of a sequence that each expert has taken so far."""
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

    def proxy_fields(self, width_fraction: float, context_fraction: float) -> dict[str, Any]:
        fewer = max(1.0, self.n_experts / MAX_PROXY_EXPERTS)
        top_k = max(1, round(self.top_k / fewer))
        d_expert = make_divisible(self.top_k * self.d_expert * width_fraction / top_k)
        n_experts, groups = max(top_k, round(self.n_experts / fewer)), None
        if self.groups and n_experts % self.groups.n == 0:
            of_one = n_experts // self.groups.n
            top = max(-(-top_k // of_one), round(self.groups.top))
            groups = {"n": self.groups.n, "top": min(self.groups.n, top)}
        return {
            "n_experts": n_experts,
            "top_k": top_k,
            "d_expert": d_expert,
            "d_shared": (self.n_shared and make_divisible(self.shared_width * width_fraction))
            or None,
            "groups": groups,
            "latent": self.latent and make_divisible(self.latent * width_fraction),
        }
