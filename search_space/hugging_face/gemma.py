"""The Gemma families, 2 to 4."""

from typing import Any

from ..architecture import Architecture
from .family import family
from .json_fields import Fields, first
from .layers import ATTENTION, Column, every, layers, named, one_in
from .parts import (
    GATED,
    Config,
    Draft,
    Pair,
    Part,
    always,
    biases,
    cap,
    choice,
    dense,
    fact,
    first_block,
    kinds,
    look,
    no_effect,
    only,
    outer,
    softmax_scale,
    whole_heads,
)
from .positions import rotary


def gemma(vocab_size: int) -> tuple[Part, ...]:
    """What the Gemma families share."""
    return (
        *outer(d_model=2304, vocab_size=vocab_size, eps=1e-6, tied=True),
        always("norm.placement", "sandwich"),
        always("embedding_scale", "sqrt_d_model"),
        *kinds(attn="W *"),
        fact("W *.heads", "num_attention_heads", 8),
        fact("W *.kv_heads", "num_key_value_heads", 4),
    )


def gemma_feed_forward(symbols: str = "-") -> tuple[Part, ...]:
    """A dense feed-forward; its activation is that of all in `symbols`."""
    return (
        *dense(9216),
        choice(f"{symbols}.activation", "hidden_activation", "gelu_pytorch_tanh", GATED),
        no_effect("hidden_act"),
    )


def caps(logits: float | None, attention: float | None) -> tuple[Part, ...]:
    """The soft caps of Gemma; a null switches one off."""
    return (
        cap("final_logit_softcap", "final_logit_softcapping", logits),
        cap("* W.logit_softcap", "attn_logit_softcapping", attention),
    )


GEMMA2 = family(
    "gemma2",
    "Gemma2ForCausalLM",
    gemma(256_000),
    always("norm.zero_centered", True),
    fact("* W.head_dim", "head_dim", 256),
    biases("* W"),
    fact("W.window", "sliding_window", 4096),
    softmax_scale(
        "* W",
        "query_pre_attn_scalar",
        256,
        decode=lambda scalar: scalar**-0.5,
        encode=lambda scale: round(scale**-2),
    ),
    caps(30.0, 50.0),
    rotary("* W"),
    gemma_feed_forward(),
    layers(26, named("layer_types", ATTENTION, one_in(("W", "*"), 2)), every("-")),
    only(use_bidirectional_attention=False),
    whole_heads("*"),
)


GEMMA3_TEXT = family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    gemma(262_208),
    always("norm.zero_centered", True),
    fact("* W.head_dim", "head_dim", 256),
    biases("* W"),
    always("* W.qk_norm", "head"),
    fact("W.window", "sliding_window", 4096),
    softmax_scale(
        "* W",
        "query_pre_attn_scalar",
        256,
        decode=lambda scalar: scalar**-0.5,
        encode=lambda scale: round(scale**-2),
    ),
    caps(None, None),
    rotary("*", theta=1_000_000.0, label="full_attention"),
    rotary(
        "W",
        label="sliding_attention",
        old_theta="rope_local_base_freq",
        old_scaling=None,
    ),
    gemma_feed_forward(),
    layers(
        26,
        named("layer_types", ATTENTION, one_in(("W", "*"), 6, "sliding_window_pattern")),
        every("-"),
    ),
    no_effect("sliding_window_pattern"),
    only(use_bidirectional_attention=False),
    whole_heads("*"),
)


def gemma4_globals() -> Part:
    """Gemma 4's full attention has heads of its own width and number, and no value matrix.

    transformers writes them as overrides of single layers.
    """
    inner = "per_layer_config"

    def read(fields: Fields, draft: Draft) -> None:
        shared = first(fields.flag("attention_k_eq_v"), False)
        width, own = fields.integer("global_head_dim"), fields.integer("num_global_key_value_heads")
        draft.put("*.k_eq_v", shared)
        if (overrides := fields.part(inner)) is None:
            draft.put("*.head_dim", first(width, 512))
            if shared and own is not None:
                draft.put("*.kv_heads", own)
            return
        full = [i for i, symbol in enumerate(draft.symbols[::2]) if symbol == "*"]
        names = list(overrides.data)
        if sorted(int(n) if n.isdecimal() else -1 for n in names) != full or not full:
            raise fields.error(inner, f"must override the full attention's layers, got {names[:8]}")
        for name in names:
            layer = overrides.part(name)
            if layer is None:
                raise overrides.error(name, "must be an object, got null")
            head_dim, kv_heads = layer.integer("head_dim"), layer.integer("num_key_value_heads")
            draft.put("*.head_dim", first(head_dim, draft.get("W.head_dim")))
            draft.put("*.kv_heads", first(kv_heads, draft.get("W.kv_heads")))

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, ("*",))
        if block is not None:
            config["attention_k_eq_v"] = block.k_eq_v
            config["global_head_dim"] = block.head_dim
            config["num_global_key_value_heads"] = block.kv_heads if block.k_eq_v else None

    return Pair(read=read, write=write)


def gemma4_mixers() -> Column:
    """Gemma 4's last layer has full attention, whatever the rule says."""
    rule = one_in(("W", "*"), 6)
    listed = named("layer_types", ATTENTION, lambda f, number: [*list(rule(f, number))[:-1], "*"])

    def read(fields: Fields, number: int) -> list[str]:
        symbols = listed.read(fields, number)
        if symbols[-1] != "*":
            raise fields.error("layer_types", "the last layer must have full_attention")
        return symbols

    return Column(read=read, write=listed.write)


def gemma4_layer_inputs() -> Part:
    """Gemma 4's embeddings for each layer, which our schema does not know; the class has some."""
    theirs = "hidden_size_per_layer_input"

    def read(fields: Fields, _: Draft) -> None:
        width = first(fields.integer(theirs, least=0), 256)
        if width:
            fields.leave(theirs, width)

    return Pair(read=read, write=lambda _, config: config.update({theirs: 0}))


def gemma4_feed_forwards() -> Column:
    """Gemma 4: a dense feed-forward in each layer, beside experts where they are switched on."""
    both = "[-|E]"

    def read(fields: Fields, number: int) -> list[str]:
        on = first(fields.flag("enable_moe_block"), False)
        return [both if on else "-"] * number

    def write(symbols: list[str]) -> Config:
        return {"enable_moe_block": both in symbols}

    return Column(read=read, write=write)


def gemma4_experts() -> Part:
    names = {
        "n_experts": "num_experts",
        "top_k": "top_k_experts",
        "d_expert": "moe_intermediate_size",
    }

    def read(fields: Fields, draft: Draft) -> None:
        on = first(fields.flag("enable_moe_block"), False)
        for ours, theirs in names.items():
            value = fields.integer(theirs)
            if on and value is None:
                raise fields.error(theirs, "required field is missing, enable_moe_block is true")
            draft.put(f"E.{ours}", value)
        if on:
            draft.put("joins", {"[-|E]": {"branch_norms": True}})

    def write(architecture: Architecture, config: Config) -> None:
        for ours, theirs in names.items():
            if (value := look(architecture, f"E.{ours}")) is not None:
                config[theirs] = value

    return Pair(read=read, write=write)


GEMMA4_TEXT = family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    gemma(262_144),
    biases("* W"),
    fact("W.head_dim", "head_dim", 256),
    always("* W.qk_norm", "head"),
    always("* W.v_norm", True),
    always("* W.softmax_scale", 1.0),
    fact("W.window", "sliding_window", 512),
    rotary(
        "*",
        theta=1_000_000.0,
        partial=0.25,
        label="full_attention",
        scaling={"type": "proportional"},
    ),
    rotary("W", label="sliding_attention"),
    cap("final_logit_softcap", "final_logit_softcapping", None),
    kinds(moe="E"),
    always("E.router_scale", True),
    gemma_feed_forward("- E"),
    gemma4_experts(),
    layers(30, gemma4_mixers(), gemma4_feed_forwards()),
    gemma4_globals(),
    gemma4_layer_inputs(),
    only(use_bidirectional_attention=(False, "vision"), num_kv_shared_layers=0),
    only(use_double_wide_mlp=False),
    no_effect("vocab_size_per_layer_input"),
)


FAMILIES = (GEMMA2, GEMMA3_TEXT, GEMMA4_TEXT)
