"""Mappings of feed-forward blocks: dense, routed experts, shared experts, activations."""

from typing import Any

from ..architecture import Architecture
from .json_fields import Fields, coalesce
from .mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    choice,
    constant,
    expected,
    field,
    get_field,
)

# Activations of transformers, as ours of a feed-forward with a gate, and of one without.
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}
UNGATED = {"relu2": "relu2", "relu": "relu", "silu": "silu", "gelu": "gelu"}


def activation(symbols: str, name: str = "hidden_act", default: str = "silu") -> FieldMapping:
    """The activation of feed-forwards with a gate."""
    return choice(f"{symbols}.activation", name, default, GATED)


def dense_ffn(width: int, *, name: str = "intermediate_size") -> tuple[FieldMapping, ...]:
    """The dense feed-forward `-`."""
    return (*block_kinds(ffn="-"), field("-.width", name, width))


def routed_experts(
    *,
    n_experts: int,
    top_k: int | None,
    d_expert: int,
    n_name: str = "num_local_experts|num_experts",
    top_k_name: str = "num_experts_per_tok",
    width_name: str = "moe_intermediate_size",
    symbols: str = "E",
) -> tuple[FieldMapping, ...]:
    """Routed experts: their number, how many a token takes, the width of each."""
    return (
        *block_kinds(moe=symbols),
        field(f"{symbols}.n_experts", n_name, n_experts),
        field(f"{symbols}.top_k", top_k_name, top_k),
        field(f"{symbols}.d_expert", width_name, d_expert),
    )


def deepseek_experts(
    *, n_experts: int, top_k: int | None, d_expert: int, n_shared: int, scale: float
) -> tuple[FieldMapping, ...]:
    """Routed and shared experts with DeepSeek-V2's field names."""
    return (
        *routed_experts(
            n_experts=n_experts,
            top_k=top_k,
            d_expert=d_expert,
            n_name="n_routed_experts|num_local_experts|num_experts",
        ),
        field("E.n_shared", "n_shared_experts", n_shared, least=0),
        field("E.scale", "routed_scaling_factor", scale),
        expected(moe_layer_freq=1),
    )


def expert_groups(n: int, top: int, *, n_name: str = "n_group") -> FieldMapping:
    """Group-limited routing of experts `E`; one group means none."""
    names = tuple(n_name.split("|"))

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        n_groups = coalesce(fields.integer(*names), n)
        top_groups = coalesce(fields.integer("topk_group"), top)
        if n_groups > 1:
            draft.set("E.groups", {"n": n_groups, "top": top_groups})

    def write(architecture: Architecture, config: Config) -> None:
        if "E" in architecture.blocks:
            groups = get_field(architecture, "E.groups")
            config[names[0]] = groups.n if groups else 1
            config["topk_group"] = groups.top if groups else 1

    return CustomMapping(read=read, write=write)


def sigmoid_routing(n_groups: int, top_groups: int) -> tuple[FieldMapping, ...]:
    """DeepSeek-V3's router of `E`: sigmoid scores, a bias that balances load, groups of experts."""
    return (
        expert_groups(n_groups, top_groups),
        constant("E.router", "sigmoid_bias"),
        expected(scoring_func="sigmoid", topk_method="noaux_tc"),
    )


def shared_expert_width(name: str, default: int) -> FieldMapping:
    """The total width of the shared experts of `E`; zero means none."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        width = coalesce(fields.integer(name, least=0), default)
        n_shared = draft.get("E.n_shared") or (1 if width else 0)
        draft.set("E.n_shared", n_shared)
        if width and width != n_shared * draft.get("E.d_expert"):
            draft.set("E.d_shared", width)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("E")
        if block is not None:
            config[name] = block.shared_width

    return CustomMapping(read=read, write=write)
