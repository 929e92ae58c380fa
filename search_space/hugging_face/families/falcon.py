"""Falcon-H1."""

from typing import Any

from ...architecture import Architecture
from ..attention import attention_bias, gqa
from ..family import family
from ..feed_forward import activation, dense_ffn
from ..json_fields import Fields, coalesce
from ..layers import every_layer, layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    expected,
    field,
    get_field,
    ignored,
)
from ..model import top_level
from ..recurrent import mamba2_head_dim
from ..rope import rope


def _inner_width(fields: Fields, draft: ArchitectureDraft) -> int:
    """`mamba_d_ssm`; null is `mamba_expand` times d_model."""
    width = coalesce(fields.integer("mamba_d_ssm"), 1024)
    expanded = coalesce(fields.integer("mamba_expand"), 2) * draft.get("d_model")
    return expanded if fields.is_null("mamba_d_ssm") else width


def _written_inner_width() -> FieldMapping:
    """`mamba_d_ssm`, which the head width has read."""

    def write(architecture: Architecture, config: Config) -> None:
        if (inner := get_field(architecture, "M.d_inner")) is not None:
            config["mamba_d_ssm"] = inner

    return CustomMapping(read=lambda *_: None, write=write)


def _multipliers() -> FieldMapping:
    """Factors of embeddings, logits, and attention, as its softmax scale and value scale.

    Those of the recurrence and of the feed-forward are not expressed unless they are one.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        draft.set("embedding_scale", coalesce(fields.number("embedding_multiplier"), 1.0))
        draft.set("logit_scale", coalesce(fields.number("lm_head_multiplier"), 1.0))
        key, inward, outward = (
            coalesce(fields.number(name), 1.0)
            for name in ("key_multiplier", "attention_in_multiplier", "attention_out_multiplier")
        )
        if key * inward**2 != 1:
            draft.set("*.softmax_scale", key * inward**2 * draft.get("*.head_dim") ** -0.5)
        draft.set("*.value_scale", inward * outward)
        for name in ("ssm_in_multiplier", "ssm_out_multiplier"):
            if coalesce(fields.number(name), 1.0) != 1:
                fields.mark_unexpressed(name)
        for name in ("mlp_multipliers", "ssm_multipliers"):
            if set(fields.numbers(name) or ()) - {1.0}:
                fields.mark_unexpressed(name)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("*")
        if block is not None:
            default = block.head_dim**-0.5
            config["key_multiplier"] = (block.softmax_scale or default) / default
            config["attention_out_multiplier"] = block.value_scale
        config["embedding_multiplier"] = architecture.embedding_scale
        config["lm_head_multiplier"] = architecture.logit_scale

    return CustomMapping(read=read, write=write)


def _gated_norm() -> FieldMapping:
    """The norm after the gate of Mamba-2; a norm before the gate is not expressed."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        on = coalesce(fields.flag("mamba_rms_norm"), False)
        draft.set("M.gated_norm", on)
        if coalesce(fields.flag("mamba_norm_before_gate"), True) and on:
            fields.mark_unexpressed("mamba_norm_before_gate", True)

    def write(architecture: Architecture, config: Config) -> None:
        config["mamba_rms_norm"] = bool(get_field(architecture, "M.gated_norm"))
        config["mamba_norm_before_gate"] = False

    return CustomMapping(read=read, write=write)


FALCON_H1 = family(
    "falcon_h1",
    "FalconH1ForCausalLM",
    top_level(d_model=4096, vocab_size=128_000, eps=1e-5),
    gqa("*", heads=32, kv_heads=8),
    attention_bias("*"),
    rope("*"),
    _multipliers(),
    block_kinds(mamba2="M"),
    field("M.heads", "mamba_n_heads", 128),
    mamba2_head_dim("mamba_d_head", _inner_width),
    _written_inner_width(),
    field("M.d_state", "mamba_d_state", 256),
    field("M.groups", "mamba_n_groups", 1),
    field("M.conv", "mamba_d_conv", 4),
    field("M.conv_bias", "mamba_conv_bias", True),
    _gated_norm(),
    dense_ffn(14336),
    activation("-"),
    field("-.bias", "mlp_bias", False),
    layers(32, every_layer("[*|M]"), every_layer("-")),
    expected(mamba_proj_bias=False, projectors_bias=False, mamba_use_mlp=True),
    ignored("layer_types", "layers_block_type"),
)
