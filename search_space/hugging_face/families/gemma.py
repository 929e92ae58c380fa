"""Gemma 2 to 4."""

from typing import Any

from ...architecture import Architecture
from ..attention import attention_bias, heads_divide_d_model, softmax_scale
from ..family import family
from ..feed_forward import activation, dense_ffn
from ..json_fields import Fields, coalesce
from ..layers import ATTENTION, LayerBlocks, every_layer, every_nth, layer_types, layers
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
    nullable,
)
from ..model import top_level
from ..rope import rope


def _gemma(vocab_size: int) -> tuple[FieldMapping, ...]:
    """Mappings that all Gemma families share."""
    return (
        *top_level(d_model=2304, vocab_size=vocab_size, eps=1e-6, tied=True),
        constant("norm.placement", "sandwich"),
        constant("embedding_scale", "sqrt_d_model"),
        *block_kinds(attn="W *"),
        field("W *.heads", "num_attention_heads", 8),
        field("W *.kv_heads", "num_key_value_heads", 4),
    )


def _feed_forward(symbols: str = "-") -> tuple[FieldMapping, ...]:
    """The dense feed-forward; its activation is that of all blocks in `symbols`."""
    return (
        *dense_ffn(9216),
        activation(symbols, "hidden_activation", "gelu_pytorch_tanh"),
        ignored("hidden_act"),
    )


def _softcaps(logits: float | None, attention: float | None) -> tuple[FieldMapping, ...]:
    """Soft caps of the logits and of the attention scores; null switches one off."""
    return (
        nullable("final_logit_softcap", "final_logit_softcapping", logits),
        nullable("* W.logit_softcap", "attn_logit_softcapping", attention),
    )


def _query_scale() -> FieldMapping:
    """`query_pre_attn_scalar`, whose inverse square root is the softmax scale."""
    return softmax_scale(
        "* W",
        "query_pre_attn_scalar",
        256,
        to_scale=lambda scalar: scalar**-0.5,
        from_scale=lambda scale: round(scale**-2),
    )


GEMMA2 = family(
    "gemma2",
    "Gemma2ForCausalLM",
    _gemma(256_000),
    constant("norm.zero_centered", True),
    field("* W.head_dim", "head_dim", 256),
    attention_bias("* W"),
    field("W.window", "sliding_window", 4096),
    _query_scale(),
    _softcaps(30.0, 50.0),
    rope("* W"),
    _feed_forward(),
    layers(26, layer_types("layer_types", ATTENTION, every_nth(("W", "*"), 2)), every_layer("-")),
    expected(use_bidirectional_attention=False),
    heads_divide_d_model("*"),
)

GEMMA3_TEXT = family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _gemma(262_208),
    constant("norm.zero_centered", True),
    field("* W.head_dim", "head_dim", 256),
    attention_bias("* W"),
    constant("* W.qk_norm", "head"),
    field("W.window", "sliding_window", 4096),
    _query_scale(),
    _softcaps(None, None),
    rope("*", theta=1_000_000.0, key="full_attention"),
    rope("W", key="sliding_attention", old_theta="rope_local_base_freq", old_scaling=None),
    _feed_forward(),
    layers(
        26,
        layer_types("layer_types", ATTENTION, every_nth(("W", "*"), 6, "sliding_window_pattern")),
        every_layer("-"),
    ),
    ignored("sliding_window_pattern"),
    expected(use_bidirectional_attention=False),
    heads_divide_d_model("*"),
)


def _gemma4_full_attention() -> FieldMapping:
    """Gemma 4's full attention: head width and number of its own, keys used as values.

    Files have fields for all full-attention layers; transformers saves them in `per_layer_config`,
    one object for each of these layers. Raises InputError where that names other layers.
    """
    overrides_name = "per_layer_config"

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        k_eq_v = coalesce(fields.flag("attention_k_eq_v"), False)
        head_dim = fields.integer("global_head_dim")
        kv_heads = fields.integer("num_global_key_value_heads")
        draft.set("*.k_eq_v", k_eq_v)
        if (overrides := fields.section(overrides_name)) is None:
            draft.set("*.head_dim", coalesce(head_dim, 512))
            if k_eq_v and kv_heads is not None:
                draft.set("*.kv_heads", kv_heads)
            return
        full = [i for i, symbol in enumerate(draft.symbols[::2]) if symbol == "*"]
        names = list(overrides.data)
        if sorted(int(n) if n.isdecimal() else -1 for n in names) != full or not full:
            raise fields.error(
                overrides_name, f"must name the layers of full attention, got {names[:8]}"
            )
        for name in names:
            layer = overrides.section(name)
            if layer is None:
                raise overrides.error(name, "must be an object, got null")
            head_dim, kv_heads = layer.integer("head_dim"), layer.integer("num_key_value_heads")
            draft.set("*.head_dim", coalesce(head_dim, draft.get("W.head_dim")))
            draft.set("*.kv_heads", coalesce(kv_heads, draft.get("W.kv_heads")))

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("*")
        if block is not None:
            config["attention_k_eq_v"] = block.k_eq_v
            config["global_head_dim"] = block.head_dim
            config["num_global_key_value_heads"] = block.kv_heads if block.k_eq_v else None

    return CustomMapping(read=read, write=write)


def _gemma4_mixers() -> LayerBlocks:
    """Full attention in every sixth layer and in the last, which must have it, else InputError."""
    every_sixth = every_nth(("W", "*"), 6)
    listed = layer_types(
        "layer_types", ATTENTION, lambda fields, n: [*list(every_sixth(fields, n))[:-1], "*"]
    )

    def read(fields: Fields, number: int) -> list[str]:
        symbols = listed.read(fields, number)
        if symbols[-1] != "*":
            raise fields.error("layer_types", "must end with full_attention, got sliding_attention")
        return symbols

    return LayerBlocks(read=read, write=listed.write)


def _gemma4_layer_inputs() -> FieldMapping:
    """`hidden_size_per_layer_input`: embeddings per layer, not expressed unless zero."""
    name = "hidden_size_per_layer_input"

    def read(fields: Fields, _: ArchitectureDraft) -> None:
        if width := coalesce(fields.integer(name, least=0), 256):
            fields.mark_unexpressed(name, width)

    def write(_: Architecture, config: Config) -> None:
        config[name] = 0

    return CustomMapping(read=read, write=write)


def _gemma4_feed_forwards() -> LayerBlocks:
    """A dense feed-forward in each layer, with experts in parallel where they are switched on."""
    both = "[-|E]"

    def read(fields: Fields, number: int) -> list[str]:
        on = coalesce(fields.flag("enable_moe_block"), False)
        return [both if on else "-"] * number

    def write(symbols: list[str]) -> Config:
        return {"enable_moe_block": both in symbols}

    return LayerBlocks(read=read, write=write)


def _gemma4_experts() -> FieldMapping:
    """Sizes of the experts, all required where `enable_moe_block` is true."""
    names = {
        "n_experts": "num_experts",
        "top_k": "top_k_experts",
        "d_expert": "moe_intermediate_size",
    }

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        on = coalesce(fields.flag("enable_moe_block"), False)
        for ours, name in names.items():
            value = fields.integer(name)
            if on and value is None:
                raise fields.error(name, "required field is missing, as enable_moe_block is true")
            draft.set(f"E.{ours}", value)
        if on:
            draft.set("joins", {"[-|E]": {"branch_norms": True}})

    def write(architecture: Architecture, config: Config) -> None:
        for ours, name in names.items():
            if (value := get_field(architecture, f"E.{ours}")) is not None:
                config[name] = value

    return CustomMapping(read=read, write=write)


GEMMA4_TEXT = family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    _gemma(262_144),
    attention_bias("* W"),
    field("W.head_dim", "head_dim", 256),
    constant("* W.qk_norm", "head"),
    constant("* W.v_norm", True),
    constant("* W.softmax_scale", 1.0),
    field("W.window", "sliding_window", 512),
    rope(
        "*",
        theta=1_000_000.0,
        partial=0.25,
        key="full_attention",
        scaling={"type": "proportional"},
    ),
    rope("W", key="sliding_attention"),
    nullable("final_logit_softcap", "final_logit_softcapping", None),
    block_kinds(moe="E"),
    constant("E.router_scale", True),
    _feed_forward("- E"),
    _gemma4_experts(),
    layers(30, _gemma4_mixers(), _gemma4_feed_forwards()),
    _gemma4_full_attention(),
    _gemma4_layer_inputs(),
    expected(use_bidirectional_attention=(False, "vision"), num_kv_shared_layers=0),
    expected(use_double_wide_mlp=False),
    ignored("vocab_size_per_layer_input"),
)
