"""Nemotron-H."""

from collections.abc import Iterable

from ...architecture import Architecture
from ...pattern import unroll
from ..attention import gqa
from ..family import family
from ..feed_forward import UNGATED, dense_ffn, expert_groups, routed_experts, shared_expert_width
from ..json_fields import Fields
from ..layers import MAX_LAYERS, layer_types
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
    ignored,
    nullable,
)
from ..model import top_level

_SYMBOL_OF = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def _no_default(_: Fields, __: int) -> Iterable[str]:
    return ()  # the list is known to be there


def _stack() -> FieldMapping:
    """The blocks and those of an MTP module: a list of names, or a string of our symbols.

    `num_hidden_layers` counts blocks; reading raises InputError where it contradicts the list.
    """

    def listed(fields: Fields, names: tuple[str, ...], pattern_name: str) -> list[str] | None:
        pattern = fields.text(pattern_name)
        given = fields.texts(*names)
        if given is not None:
            return layer_types("|".join(names), _SYMBOL_OF, _no_default).read(fields, len(given))
        if pattern is None:
            return None
        if odd := next((c for c in pattern if c not in _SYMBOL_OF.values()), None):
            raise fields.error(pattern_name, f"unknown symbol {odd!r}; known: M * - E")
        return list(pattern)

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        names = ("layers_block_type", "layer_types")
        symbols = listed(fields, names, "hybrid_override_pattern") or ["M", "E", "*", "-"]
        number = fields.integer("num_hidden_layers")
        if number not in (None, len(symbols)):
            raise fields.error(
                "num_hidden_layers",
                f"must be the number of entries of {names[0]}, {len(symbols)}, got {number}",
            )
        if len(symbols) > MAX_LAYERS:
            raise fields.error(
                names[0], f"must have at most {MAX_LAYERS} entries, got {len(symbols)}"
            )
        draft.symbols = tuple(symbols)
        module = listed(fields, ("mtp_layers_block_type",), "mtp_hybrid_override_pattern")
        if depth := fields.integer("num_nextn_predict_layers", least=0):
            draft.set("mtp", {"depth": depth, "pattern": "".join(module or ["*", "E"])})

    def write(architecture: Architecture, config: Config) -> None:
        blocks = layer_types("layers_block_type", _SYMBOL_OF, _no_default)
        config |= blocks.write(list(architecture.symbols))
        config["num_hidden_layers"] = len(architecture.symbols)
        modules = architecture.mtp
        config["num_nextn_predict_layers"] = modules.depth if modules else 0
        if modules:
            module = layer_types("mtp_layers_block_type", _SYMBOL_OF, _no_default)
            config |= module.write(list(unroll(modules.pattern)))

    return CustomMapping(read=read, write=write)


NEMOTRON_H = family(
    "nemotron_h",
    "NemotronHForCausalLM",
    top_level(d_model=4096, vocab_size=131_072, eps=1e-5, eps_name="layer_norm_epsilon"),
    gqa("*", heads=32, kv_heads=8, head_dim=128),
    constant("*.rope", None),
    block_kinds(mamba2="M"),
    field("M.heads", "mamba_num_heads", 128),
    field("M.head_dim", "mamba_head_dim", 64),
    field("M.d_state", "ssm_state_size", 128),
    field("M.groups", "n_groups|mamba_n_groups", 8),
    field("M.conv", "conv_kernel|mamba_d_conv", 4),
    field("M.conv_bias", "use_conv_bias|mamba_conv_bias", True),
    dense_ffn(21504),
    routed_experts(
        n_experts=8, top_k=2, d_expert=7688, n_name="n_routed_experts|num_local_experts"
    ),
    field("E.n_shared", "n_shared_experts", 1, least=0),
    shared_expert_width("moe_shared_expert_intermediate_size", 7688),
    nullable("E.latent", "moe_latent_size", None, integer=True),
    field("E.norm_topk", "norm_topk_prob", True),
    field("E.scale", "routed_scaling_factor", 1.0),
    expert_groups(1, 1),
    constant("E.router", "sigmoid_bias"),
    choice("- E.activation", "mlp_hidden_act", "relu2", UNGATED),
    _stack(),
    expected(attention_bias=False, mlp_bias=False, use_bias=False, mamba_proj_bias=False),
    expected(mamba_hidden_act="silu"),
    ignored("expand", "mamba_expand", "moe_shared_expert_overlap", "hidden_act"),
    ignored("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
)
