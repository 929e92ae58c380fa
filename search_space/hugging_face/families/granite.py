"""Granite 4."""

from typing import Any

from ...architecture import Architecture
from ..attention import attention_bias, gqa, softmax_scale
from ..family import family
from ..feed_forward import activation
from ..json_fields import Fields, coalesce
from ..layers import LayerBlocks, layer_types, layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    expected,
    field,
    get_field,
)
from ..model import top_level
from ..recurrent import expansion, mamba2_head_dim, mamba2_width
from ..rope import OptionalRope, rope


def _inner_width(fields: Fields, draft: ArchitectureDraft) -> int:
    return coalesce(fields.integer("mamba_expand"), 2) * draft.get("d_model")


def _inverse(path: str, name: str, default: float) -> FieldMapping:
    """A divisor in the file, a factor in ours; raises InputError unless above zero."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        given = coalesce(fields.number(name), default)
        if given <= 0:
            raise fields.error(name, f"must be above zero, got {given}")
        draft.set(path, 1 / given)

    def write(architecture: Architecture, config: Config) -> None:
        config[name] = 1 / get_field(architecture, path)

    return CustomMapping(read=read, write=write)


def _feed_forwards() -> LayerBlocks:
    """Experts with a shared one in every layer; without experts only the shared one, as dense."""

    def read(fields: Fields, number: int) -> list[str]:
        n_experts = coalesce(fields.integer("num_local_experts", least=0), 8)
        return ["E" if n_experts else "-"] * number

    def write(symbols: list[str]) -> Config:
        return {} if "E" in symbols else {"num_local_experts": 0, "num_experts_per_tok": 0}

    return LayerBlocks(read=read, write=write)


def _feed_forward_sizes() -> FieldMapping:
    """Sizes of the experts, and `shared_intermediate_size` of the shared one or of the dense."""
    names = {
        "n_experts": ("num_local_experts", 8),
        "top_k": ("num_experts_per_tok", 2),
        "d_expert": ("intermediate_size", 11008),
    }

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        shared = coalesce(fields.integer("shared_intermediate_size", least=0), 1024)
        draft.set("-.width", shared)
        for ours, (name, default) in names.items():
            draft.set(f"E.{ours}", coalesce(fields.integer(name, least=0), default))
        draft.set("E.n_shared", 1 if shared else 0)
        if shared and shared != draft.get("E.d_expert"):
            draft.set("E.d_shared", shared)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("E")
        if block is None:
            config["shared_intermediate_size"] = get_field(architecture, "-.width")
            return
        for ours, (name, _) in names.items():
            config[name] = get_field(architecture, f"E.{ours}")
        config["shared_intermediate_size"] = block.shared_width

    return CustomMapping(read=read, write=write)


GRANITEMOEHYBRID = family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    top_level(d_model=4096, vocab_size=32000, eps=1e-6),
    field("residual.add", "residual_multiplier", 1.0),
    field("embedding_scale", "embedding_multiplier", 1.0),
    _inverse("logit_scale", "logits_scaling", 1.0),
    gqa("*", heads=32),
    attention_bias("*"),
    softmax_scale("*", "attention_multiplier", 1.0),
    OptionalRope(
        rope=rope("*"),
        enabled=lambda fields: fields.text("position_embedding_type") == "rope",
        write_enabled=lambda on: {"position_embedding_type": "rope" if on else "nope"},
    ),
    block_kinds(mamba2="M", ffn="-", moe="E"),
    field("M.heads", "mamba_n_heads", 128),
    mamba2_head_dim("mamba_d_head", _inner_width),
    expansion("mamba_expand", 2, "M.d_inner", mamba2_width),
    field("M.d_state", "mamba_d_state", 256),
    field("M.groups", "mamba_n_groups", 1),
    field("M.conv", "mamba_d_conv", 4),
    field("M.conv_bias", "mamba_conv_bias", True),
    _feed_forward_sizes(),
    activation("- E"),
    layers(
        32,
        layer_types(
            "layer_types|layers_block_type",
            {"linear_attention": "M", "full_attention": "*"},
            lambda _, number: ["M"] * number,
        ),
        _feed_forwards(),
    ),
    expected(mamba_proj_bias=False, normalization_function="rmsnorm"),
)
