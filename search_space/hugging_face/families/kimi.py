"""Kimi Linear and Kimi K3.

Published files of both have the fields of Kimi Delta Attention and the numbers of its layers in
`linear_attn_config`, which is how Kimi K3 is written. Kimi Linear is written as transformers does
it, with flat fields and `layer_types`.
"""

from collections.abc import Iterable

from ...architecture import Architecture
from ..attention import mla
from ..family import family
from ..feed_forward import dense_ffn, expert_groups, routed_experts
from ..json_fields import Fields, as_json
from ..layers import LayerBlocks, layer_types, layers, leading_dense
from ..mapping import (
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
    ignored,
    nullable,
)
from ..model import top_level
from ..rope import OptionalRope, rope


def _by_layer_numbers(fields: Fields, number: int) -> Iterable[str]:
    """Layers by `full_attn_layers` and `kda_layers`, which count from one; else by default.

    Raises InputError unless each layer is in one of the two lists.
    """
    section = fields.section("linear_attn_config")
    full = section and section.integers("full_attn_layers")
    delta = section and section.integers("kda_layers")
    if section is None or full is None or delta is None:
        return ["L" if i and i % 4 == 0 else "K" for i in range(number)]
    if sorted(full + delta) != list(range(1, number + 1)):
        raise section.error(
            "full_attn_layers",
            f"must list, together with kda_layers, each layer from 1 to {number} once, "
            f"got {as_json(full)}",
        )
    return ["L" if i + 1 in full else "K" for i in range(number)]


_LISTED_MIXERS = layer_types(
    "layer_types", {"linear_attention": "K", "full_attention": "L"}, _by_layer_numbers
)


def _numbered_mixers() -> LayerBlocks:
    """The mixers, written as `full_attn_layers` and `kda_layers`."""

    def write(symbols: list[str]) -> Config:
        _LISTED_MIXERS.write(symbols)  # raises InputError for other symbols
        return {
            "linear_attn_config": {
                "full_attn_layers": [i + 1 for i, s in enumerate(symbols) if s == "L"],
                "kda_layers": [i + 1 for i, s in enumerate(symbols) if s == "K"],
            }
        }

    return LayerBlocks(read=_LISTED_MIXERS.read, write=write)


def _attention_residuals() -> FieldMapping:
    """`attn_res_block_size`: layers per group of Kimi K3's attention residuals."""
    name = "attn_res_block_size"

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        if (block := fields.integer(name)) is not None:
            draft.set("attention_residuals", {"block": block})

    def write(architecture: Architecture, config: Config) -> None:
        config[name] = get_field(architecture, "attention_residuals.block")

    return CustomMapping(read=read, write=write)


def _latent_experts() -> FieldMapping:
    """The width in which Kimi K3's experts work, if not d_model, and its norm."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        latent = fields.integer("routed_expert_hidden_size")
        norm = fields.flag("latent_moe_use_norm")
        draft.set("E.latent", latent)
        draft.set("E.latent_norm", bool(latent and norm))

    def write(architecture: Architecture, config: Config) -> None:
        if "E" in architecture.blocks:
            config["routed_expert_hidden_size"] = get_field(architecture, "E.latent")
            config["latent_moe_use_norm"] = get_field(architecture, "E.latent_norm")

    return CustomMapping(read=read, write=write)


def _kimi(
    *,
    heads_name: str,
    head_dim_name: str,
    conv_name: str,
    n_experts_name: str,
    activations: dict[str, str],
    mixers: LayerBlocks,
) -> tuple[FieldMapping, ...]:
    """Mappings that Kimi Linear and Kimi K3 share; the first spelling of each name is written."""
    return (
        *top_level(d_model=2304, vocab_size=163_840, eps=1e-5),
        *block_kinds(kda="K"),
        *mla("L", heads=32, q_lora_rank=None),
        *dense_ffn(9216),
        *routed_experts(
            n_experts=256,
            top_k=8,
            d_expert=1024,
            n_name=n_experts_name,
            top_k_name="num_experts_per_tok|num_experts_per_token",
        ),
        field("E.n_shared", "n_shared_experts|num_shared_experts", 1, least=0),
        field("E.norm_topk", "norm_topk_prob|moe_renormalize", True),
        field("E.scale", "routed_scaling_factor", 2.446),
        expert_groups(1, 1, n_name="n_group|num_expert_group"),
        constant("E.router", "sigmoid_bias"),
        choice("- E.activation", "hidden_act", "silu", activations),
        layers(27, mixers, leading_dense("first_k_dense_replace", 1)),
        field("K.heads", heads_name, 32),
        field("K.gate_rank", head_dim_name, 128),
        field("K.v_head_dim", head_dim_name, 128),
        field("K.k_head_dim", head_dim_name, 128),
        field("K.conv", conv_name, 4),
        expected(moe_router_activation_func="sigmoid", use_grouped_topk=True),
        expected(topk_method="noaux_tc", num_nextn_predict_layers=0, moe_layer_freq=1),
    )


KIMI_LINEAR = family(
    "kimi_linear",
    "KimiLinearForCausalLM",
    _kimi(
        heads_name="linear_num_heads|linear_attn_config.num_heads",
        head_dim_name="linear_head_dim|linear_attn_config.head_dim",
        conv_name="linear_conv_kernel_dim|linear_attn_config.short_conv_kernel_size",
        n_experts_name="num_local_experts|num_experts",
        activations={"silu": "swiglu"},
        mixers=_LISTED_MIXERS,
    ),
    constant("L.rope", None),
    expected(mla_use_nope=True),
    ignored("rope_theta", "rope_scaling", "rope_parameters"),
)

KIMI_K3 = family(
    "kimi_k3",
    "KimiK3ForConditionalGeneration",
    _kimi(
        heads_name="linear_attn_config.num_heads|linear_num_heads",
        head_dim_name="linear_attn_config.head_dim|linear_head_dim",
        conv_name="linear_attn_config.short_conv_kernel_size|linear_conv_kernel_dim",
        n_experts_name="num_experts|num_local_experts",
        activations={"situ": "situ", "silu": "swiglu"},
        mixers=_numbered_mixers(),
    ),
    field("K.full_rank_gate", "linear_attn_config.use_full_rank_gate", False),
    nullable("K.gate_lower_bound", "linear_attn_config.gate_lower_bound", None),
    OptionalRope(
        rope=rope("L", interleaved=True),
        enabled=lambda fields: not fields.flag("mla_use_nope"),
        write_enabled=lambda on: {"mla_use_nope": not on},
    ),
    field("L.out_gate", "mla_use_output_gate", False),
    _attention_residuals(),
    _latent_experts(),
    expected(activation_situ_beta=4.0, activation_situ_linear_beta=25.0),
    text_type="kimi_linear",
)
