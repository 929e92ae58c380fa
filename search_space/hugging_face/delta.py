"""Families of the delta rule beside attention: Qwen3-Next, Qwen3.5, Olmo-Hybrid."""

from collections.abc import Iterable
from typing import Any

from ..architecture import Architecture
from .family import family
from .json_fields import Fields, first
from .layers import Column, every, layers, named, one_in, only_dense
from .parts import (
    Config,
    Draft,
    Pair,
    Part,
    activation,
    always,
    biases,
    dense,
    experts,
    fact,
    gqa,
    kinds,
    mtp,
    no_effect,
    only,
    outer,
    shared_width,
)
from .positions import Switched, rotary

LINEAR = {"linear_attention": "G", "full_attention": "*"}


def gated_delta_net() -> tuple[Part, ...]:
    """Gated DeltaNet as Qwen3-Next named its sizes."""
    return (
        *kinds(gdn="G"),
        fact("G.k_heads", "linear_num_key_heads", 16),
        fact("G.v_heads", "linear_num_value_heads", 32),
        fact("G.k_head_dim", "linear_key_head_dim", 128),
        fact("G.v_head_dim", "linear_value_head_dim", 128),
        fact("G.conv", "linear_conv_kernel_dim", 4),
    )


def qwen_hybrid(*, d_model: int, vocab_size: int, kv_heads: int) -> tuple[Part, ...]:
    """What Qwen3-Next and Qwen3.5 share: gated attention in one layer of four."""
    return (
        *outer(d_model=d_model, vocab_size=vocab_size, eps=1e-6),
        always("norm.zero_centered", True),
        *gated_delta_net(),
        *gqa("*", heads=16, kv_heads=kv_heads, head_dim=256),
        *biases("*"),
        always("*.qk_norm", "head"),
        always("*.out_gate", "elementwise"),
        only(attn_output_gate=True, use_sliding_window=False),
        rotary("*", partial=0.25),
    )


def qwen_mixers() -> Column:
    return named("layer_types", LINEAR, one_in(("G", "*"), 4, "full_attention_interval"))


QWEN3_NEXT = family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    qwen_hybrid(d_model=2048, vocab_size=151_936, kv_heads=2),
    dense(5632),
    experts(n_experts=512, top_k=10, d_expert=512, n="num_experts|num_local_experts"),
    fact("E.norm_topk", "norm_topk_prob", True),
    shared_width("shared_expert_intermediate_size", 512),
    always("E.shared_gate", True),
    activation("- E"),
    layers(48, qwen_mixers(), only_dense("decoder_sparse_step", "mlp_only_layers")),
    mtp("num_nextn_predict_layers", "*E"),
    no_effect("full_attention_interval"),
)

QWEN3_5_TEXT = family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    qwen_hybrid(d_model=4096, vocab_size=248_320, kv_heads=4),
    dense(12288),
    activation("-"),
    layers(32, qwen_mixers(), every("-")),
    mtp("mtp_num_hidden_layers", "*-"),
    only(mtp_use_dedicated_embeddings=False, mlp_only_layers=[]),
    no_effect("full_attention_interval"),
)

QWEN3_5_MOE_TEXT = family(
    "qwen3_5_moe_text",
    "Qwen3_5MoeForCausalLM",
    qwen_hybrid(d_model=2048, vocab_size=248_320, kv_heads=2),
    experts(n_experts=256, top_k=8, d_expert=512, n="num_experts|num_local_experts"),
    shared_width("shared_expert_intermediate_size", 512),
    always("E.shared_gate", True),
    activation("E"),
    layers(40, qwen_mixers(), every("E")),
    mtp("mtp_num_hidden_layers", "*E"),
    only(mtp_use_dedicated_embeddings=False, mlp_only_layers=[], norm_topk_prob=True),
    no_effect("full_attention_interval", "intermediate_size"),
)


def olmo_delta_net() -> Part:
    """Olmo-Hybrid's DeltaNet, whose sizes follow those of the attention where they are not given."""

    def read(fields: Fields, draft: Draft) -> None:
        heads = draft.get("*.heads")
        k_heads = first(fields.integer("linear_num_key_heads"), heads)
        k_dim = first(
            fields.integer("linear_key_head_dim"), 3 * draft.get("d_model") // (4 * k_heads)
        )
        draft.put("G.k_heads", k_heads)
        draft.put("G.v_heads", first(fields.integer("linear_num_value_heads"), heads))
        draft.put("G.k_head_dim", k_dim)
        draft.put("G.v_head_dim", first(fields.integer("linear_value_head_dim"), 2 * k_dim))

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("G")
        if block is not None:
            config |= {
                "linear_num_key_heads": block.k_heads,
                "linear_num_value_heads": block.v_heads,
                "linear_key_head_dim": block.k_head_dim,
                "linear_value_head_dim": block.v_head_dim,
            }

    return Pair(read=read, write=write)


def has_theta(fields: Fields) -> bool:
    """Olmo-Hybrid has no positions where rope_theta is null."""
    part = fields.part("rope_parameters")
    return not fields.is_null("rope_theta") and not (part and part.is_null("rope_theta"))


def olmo_mixers() -> Column:
    """Olmo-Hybrid has at least one layer of attention, the last if no other."""

    def absent(_: Fields, number: int) -> Iterable[str]:
        symbols = ["*" if i % 4 == 3 else "G" for i in range(number)]
        return symbols if "*" in symbols else [*symbols[:-1], "*"]

    return named("layer_types", LINEAR, absent)


OLMO_HYBRID = family(
    "olmo_hybrid",
    "OlmoHybridForCausalLM",
    outer(d_model=3840, vocab_size=100_352, eps=1e-6),
    always("norm.of_mixer", {"*": "post"}),
    gqa("*", heads=30),
    biases("*"),
    always("*.qk_norm", "full"),
    Switched(
        rotary=rotary("*"),
        on=has_theta,
        said=lambda on: (
            {} if on else {"rope_parameters": {"rope_type": "default", "rope_theta": None}}
        ),
    ),
    kinds(gdn="G"),
    olmo_delta_net(),
    fact("G.conv", "linear_conv_kernel_dim", 4),
    fact("G.negative_eigenvalues", "linear_allow_neg_eigval", True),
    dense(11008),
    activation("-"),
    layers(32, olmo_mixers(), every("-")),
)

FAMILIES = (QWEN3_NEXT, QWEN3_5_TEXT, QWEN3_5_MOE_TEXT, OLMO_HYBRID)
