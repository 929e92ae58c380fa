"""Qwen3, Qwen3-MoE, Qwen3-Next and Qwen3.5."""

from collections.abc import Iterable

from ...architecture import Architecture
from ..attention import attention_bias, gqa
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts, shared_expert_width
from ..json_fields import Fields, coalesce
from ..layers import (
    ATTENTION,
    every_layer,
    every_nth,
    layer_types,
    layers,
    shared_window,
    sparse_steps,
    windowed_or_full,
)
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    constant,
    expected,
    field,
    get_field,
    ignored,
)
from ..model import mtp, top_level
from ..recurrent import DELTA_NET_OR_ATTENTION, gated_delta_net
from ..rope import rope


def _windows_from_layer(fields: Fields, number: int) -> Iterable[str]:
    """Sliding windows from `max_window_layers` on, where `use_sliding_window` is true."""
    on = fields.flag("use_sliding_window") and not fields.is_null("sliding_window")
    start = coalesce(fields.integer("max_window_layers", least=0), 28)
    return ["W" if on and i >= start else "*" for i in range(number)]


def _switched_window() -> FieldMapping:
    """`sliding_window`, used only where `use_sliding_window` is true."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        window = coalesce(fields.integer("sliding_window"), 4096)
        draft.set("W.window", window if fields.flag("use_sliding_window") else None)
        fields.ignore("max_window_layers")

    def write(architecture: Architecture, config: Config) -> None:
        window = get_field(architecture, "W.window")
        config |= {"sliding_window": window, "use_sliding_window": window is not None}

    return CustomMapping(read=read, write=write)


QWEN3 = family(
    "qwen3",
    "Qwen3ForCausalLM",
    top_level(d_model=4096, vocab_size=151_936, eps=1e-6),
    gqa("* W", heads=32, kv_heads=32, head_dim=128),
    attention_bias("* W"),
    constant("* W.qk_norm", "head"),
    _switched_window(),
    rope("* W"),
    dense_ffn(22016),
    activation("-"),
    layers(32, layer_types("layer_types", ATTENTION, _windows_from_layer), every_layer("-")),
)

QWEN3_MOE = family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    top_level(d_model=2048, vocab_size=151_936, eps=1e-6),
    gqa("* W", heads=32, kv_heads=4),
    attention_bias("* W"),
    constant("* W.qk_norm", "head"),
    shared_window(4096, switch="use_sliding_window"),
    rope("* W"),
    dense_ffn(6144),
    routed_experts(n_experts=128, top_k=8, d_expert=768, n_name="num_experts|num_local_experts"),
    field("E.norm_topk", "norm_topk_prob", False),
    activation("- E"),
    layers(
        24,
        windowed_or_full(4096, switch="use_sliding_window"),
        sparse_steps("decoder_sparse_step", "mlp_only_layers"),
    ),
    ignored("max_window_layers"),
)


def _hybrid(*, d_model: int, vocab_size: int, kv_heads: int) -> tuple[FieldMapping, ...]:
    """Mappings of Qwen3-Next and Qwen3.5: Gated DeltaNet, and attention with an output gate."""
    return (
        *top_level(d_model=d_model, vocab_size=vocab_size, eps=1e-6),
        constant("norm.zero_centered", True),
        *gated_delta_net(),
        *gqa("*", heads=16, kv_heads=kv_heads, head_dim=256),
        *attention_bias("*"),
        constant("*.qk_norm", "head"),
        constant("*.out_gate", "elementwise"),
        expected(attn_output_gate=True, use_sliding_window=False),
        rope("*", partial=0.25),
    )


_HYBRID_MIXERS = layer_types(
    "layer_types", DELTA_NET_OR_ATTENTION, every_nth(("G", "*"), 4, "full_attention_interval")
)

QWEN3_NEXT = family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    _hybrid(d_model=2048, vocab_size=151_936, kv_heads=2),
    dense_ffn(5632),
    routed_experts(n_experts=512, top_k=10, d_expert=512, n_name="num_experts|num_local_experts"),
    field("E.norm_topk", "norm_topk_prob", True),
    shared_expert_width("shared_expert_intermediate_size", 512),
    constant("E.shared_gate", True),
    activation("- E"),
    layers(48, _HYBRID_MIXERS, sparse_steps("decoder_sparse_step", "mlp_only_layers")),
    mtp("num_nextn_predict_layers", "*E"),
    ignored("full_attention_interval"),
)

QWEN3_5_TEXT = family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    _hybrid(d_model=4096, vocab_size=248_320, kv_heads=4),
    dense_ffn(12288),
    activation("-"),
    layers(32, _HYBRID_MIXERS, every_layer("-")),
    mtp("mtp_num_hidden_layers", "*-"),
    expected(mtp_use_dedicated_embeddings=False, mlp_only_layers=[]),
    ignored("full_attention_interval"),
)

QWEN3_5_MOE_TEXT = family(
    "qwen3_5_moe_text",
    "Qwen3_5MoeForCausalLM",
    _hybrid(d_model=2048, vocab_size=248_320, kv_heads=2),
    routed_experts(n_experts=256, top_k=8, d_expert=512, n_name="num_experts|num_local_experts"),
    shared_expert_width("shared_expert_intermediate_size", 512),
    constant("E.shared_gate", True),
    activation("E"),
    layers(40, _HYBRID_MIXERS, every_layer("E")),
    mtp("mtp_num_hidden_layers", "*E"),
    expected(mtp_use_dedicated_embeddings=False, mlp_only_layers=[], norm_topk_prob=True),
    ignored("full_attention_interval", "intermediate_size"),
)
