"""Jamba."""

from math import ceil

from ...architecture import Architecture
from ..attention import gqa
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts
from ..json_fields import Fields
from ..layers import LayerBlocks, layers, periodic
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    constant,
    expected,
    field,
    get_field,
)
from ..model import top_level
from ..recurrent import expansion


def _dt_rank() -> FieldMapping:
    """`mamba_dt_rank`, the rank of the step size; null or "auto" is d_model / 16."""
    name = "mamba_dt_rank"

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        automatic = fields.data.get(name) in (None, "auto")
        fields.ignore(name)
        rank = ceil(draft.get("d_model") / 16) if automatic else fields.integer(name)
        draft.set("m.dt_rank", rank)

    def write(architecture: Architecture, config: Config) -> None:
        config[name] = get_field(architecture, "m.dt_rank") or "auto"

    return CustomMapping(read=read, write=write)


def _feed_forwards() -> LayerBlocks:
    """Experts in every n-th layer, unless there is only one expert."""
    by_period = periodic("expert_layer_period", "expert_layer_offset", (2, 1), ("-", "E"))

    def read(fields: Fields, number: int) -> list[str]:
        one = fields.integer("num_experts", "num_local_experts") == 1
        symbols = by_period.read(fields, number)
        return ["-"] * number if one else symbols

    return LayerBlocks(read=read, write=by_period.write)


JAMBA = family(
    "jamba",
    "JambaForCausalLM",
    top_level(d_model=4096, vocab_size=65536, eps=1e-6),
    gqa("*", heads=32, kv_heads=8),
    constant("*.rope", None),
    block_kinds(mamba1="m"),
    expansion("mamba_expand", 2, "m.d_inner"),
    field("m.d_state", "mamba_d_state", 16),
    _dt_rank(),
    field("m.conv", "mamba_d_conv", 4),
    field("m.conv_bias", "mamba_conv_bias", True),
    constant("m.inner_norms", True),
    dense_ffn(14336),
    routed_experts(
        n_experts=16,
        top_k=2,
        d_expert=14336,
        n_name="num_experts|num_local_experts",
        width_name="intermediate_size",
    ),
    constant("E.norm_topk", False),
    activation("- E"),
    layers(
        32,
        periodic("attn_layer_period", "attn_layer_offset", (8, 4), ("m", "*")),
        _feed_forwards(),
    ),
    expected(mamba_proj_bias=False, mamba_inner_layernorms=True),
)
