"""MiniMax-01, M2 and M3."""

from collections.abc import Iterable

from ...architecture import Architecture
from ..attention import gqa, qk_norm
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts, shared_expert_width
from ..json_fields import Fields, coalesce
from ..layers import DENSE_OR_SPARSE, every_layer, layer_types, layers, zeros_and_ones
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
    ignored,
    read_only,
)
from ..model import top_level
from ..rope import rope


def _residual() -> FieldMapping:
    """Factors of the residual and of the layer's output, per kind of layer in the file.

    Our schema has one of each; others than those of full attention are not expressed.
    """
    names_of = {
        "keep": (
            ("full_attn_alpha_factor", "layernorm_full_attention_alpha"),
            ("linear_attn_alpha_factor", "layernorm_linear_attention_alpha"),
            ("mlp_alpha_factor", "layernorm_mlp_alpha"),
        ),
        "add": (
            ("full_attn_beta_factor", "layernorm_full_attention_beta"),
            ("linear_attn_beta_factor", "layernorm_linear_attention_beta"),
            ("mlp_beta_factor", "layernorm_mlp_beta"),
        ),
    }

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        for ours, spellings in names_of.items():
            values = [coalesce(fields.number(*names), 1.0) for names in spellings]
            draft.set(f"residual.{ours}", values[0])
            for names, value in zip(spellings, values, strict=True):
                if value != values[0]:
                    fields.mark_unexpressed(names[0], value)

    def write(architecture: Architecture, config: Config) -> None:
        for ours, spellings in names_of.items():
            for name, _ in spellings:
                config[name] = get_field(architecture, f"residual.{ours}")

    return CustomMapping(read=read, write=write)


def _alternating(_: Fields, number: int) -> Iterable[str]:
    return ["T" if i % 2 else "*" for i in range(number)]


MINIMAX = family(
    "minimax",
    "MiniMaxForCausalLM",
    top_level(d_model=4096, vocab_size=32000, eps=1e-5),
    constant("norm.placement", "stream"),
    gqa("*", heads=32, kv_heads=8),
    rope("*", theta=1_000_000.0),
    block_kinds(lightning="T"),
    field("T.heads", "num_attention_heads", 32),
    field("T.head_dim", "head_dim", lambda draft: draft.get("*.head_dim")),
    routed_experts(n_experts=8, top_k=2, d_expert=14336, width_name="intermediate_size"),
    activation("E"),
    _residual(),
    layers(
        32,
        layer_types(
            "layer_types",
            {"linear_attention": "T", "full_attention": "*"},
            zeros_and_ones("attn_type_list", ("T", "*"), _alternating),
        ),
        every_layer("E"),
    ),
    expected(postnorm=True, shared_intermediate_size=0),
    ignored("shared_moe_mode"),
)


def _full_attention_only(fields: Fields, _: ArchitectureDraft) -> None:
    """`attn_type_list`, not expressed unless every layer has full attention, a one."""
    if set(fields.integers("attn_type_list") or ()) - {1}:
        fields.mark_unexpressed("attn_type_list")


def _m2_mtp() -> FieldMapping:
    """The number of MTP modules, where `use_mtp` does not switch them off."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        depth = coalesce(fields.integer("num_mtp_modules", least=0), 0)
        on = coalesce(fields.flag("use_mtp"), depth > 0)
        fields.expect("mtp_transformer_layers", 1)
        if on and depth:
            draft.set("mtp", {"depth": depth, "pattern": "*E"})

    def write(architecture: Architecture, config: Config) -> None:
        if architecture.mtp:
            config["num_mtp_modules"] = architecture.mtp.depth
            config |= {"use_mtp": True, "mtp_transformer_layers": 1}

    return CustomMapping(read=read, write=write)


MINIMAX_M2 = family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    top_level(d_model=3072, vocab_size=200_064, eps=1e-6),
    gqa("*", heads=48, kv_heads=8, head_dim=128),
    qk_norm("*", "full", True),
    rope("*", theta=5_000_000.0),
    routed_experts(n_experts=256, top_k=8, d_expert=1536, width_name="intermediate_size"),
    constant("E.router", "sigmoid_bias"),
    activation("E"),
    layers(62, every_layer("*"), every_layer("E")),
    _m2_mtp(),
    expected(qk_norm_type="per_layer", scoring_func="sigmoid", use_routing_bias=True),
    expected(shared_intermediate_size=0, attention_bias=False),
    read_only(_full_attention_only),
)


# The older object of the fields of block-sparse attention.
_OLD_SPARSE = "sparse_attention_config"

MINIMAX_M3_VL_TEXT = family(
    "minimax_m3_vl_text",
    "MiniMaxM3VLForCausalLM",
    top_level(d_model=6144, vocab_size=200_064, eps=1e-6),
    constant("norm.zero_centered", True),
    gqa("* S", heads=64, kv_heads=4, head_dim=128),
    qk_norm("* S", "head", True),
    field("S.block_sparse.index_heads", f"index_n_heads|{_OLD_SPARSE}.sparse_num_index_heads", 4),
    field("S.block_sparse.index_dim", f"index_head_dim|{_OLD_SPARSE}.sparse_index_dim", 128),
    field("S.block_sparse.block", f"index_block_size|{_OLD_SPARSE}.sparse_block_size", 128),
    field("S.block_sparse.top_k", f"index_topk_blocks|{_OLD_SPARSE}.sparse_topk_blocks", 16),
    field("S.block_sparse.local_blocks", f"index_local_blocks|{_OLD_SPARSE}.sparse_local_block", 1),
    rope("* S", theta=5_000_000.0, partial=0.5),
    dense_ffn(12288, name="dense_intermediate_size"),
    routed_experts(n_experts=128, top_k=4, d_expert=3072, width_name="intermediate_size"),
    field("E.scale", "routed_scaling_factor", 2.0),
    shared_expert_width("shared_intermediate_size", 3072),
    constant("E.router", "sigmoid_bias"),
    constant("- E.activation", "swiglu_oai"),
    layers(
        60,
        layer_types(
            "layer_types",
            {"full_attention": "*", "minimax_m3_sparse": "S"},
            zeros_and_ones(
                f"{_OLD_SPARSE}.sparse_attention_freq",
                ("*", "S"),
                lambda _, number: ["*"] * number,
            ),
        ),
        layer_types(
            "mlp_layer_types",
            DENSE_OR_SPARSE,
            zeros_and_ones("moe_layer_freq", ("-", "E"), lambda _, number: ["E"] * number),
        ),
    ),
    expected(**{f"{_OLD_SPARSE}.use_sparse_attention": True}),
    expected(**{f"{_OLD_SPARSE}.sparse_score_type": "max", f"{_OLD_SPARSE}.sparse_init_block": 0}),
    ignored(f"{_OLD_SPARSE}.sparse_disable_index_value"),
    expected(hidden_act=("silu", "swigluoai"), swiglu_alpha=1.702, swiglu_limit=7.0),
    expected(swiglu_beta=1.0, use_gemma_norm=True, qk_norm_type="per_head", n_shared_experts=1),
    expected(scoring_func="sigmoid", use_routing_bias=True, attention_output_gate=False),
)
