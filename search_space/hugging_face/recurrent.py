"""Families of other recurrences: MiniMax-01, RWKV-7, LFM2, RecurrentGemma."""

from collections.abc import Iterable

from ..architecture import Architecture
from ..document import InputError
from .family import family
from .json_fields import Fields, first
from .layers import Column, every, layers, marked, named
from .parts import (
    GATED,
    Config,
    Draft,
    Pair,
    Part,
    activation,
    always,
    cap,
    choice,
    experts,
    fact,
    gqa,
    kinds,
    look,
    no_effect,
    only,
    outer,
)
from .positions import rotary


def minimax_mixers() -> Column:
    """MiniMax-01's kinds, or the ones and zeros of its own code."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        of_old = marked("attn_type_list", ("T", "*"))(fields, number)
        return of_old or ["T" if i % 2 else "*" for i in range(number)]

    return named("layer_types", {"linear_attention": "T", "full_attention": "*"}, absent)


def minimax_residual() -> Part:
    """MiniMax-01's factors of stream and sub-block, which our schema has once for all."""
    names = {
        "keep": (
            "full_attn_alpha_factor|layernorm_full_attention_alpha",
            "linear_attn_alpha_factor|layernorm_linear_attention_alpha",
            "mlp_alpha_factor|layernorm_mlp_alpha",
        ),
        "add": (
            "full_attn_beta_factor|layernorm_full_attention_beta",
            "linear_attn_beta_factor|layernorm_linear_attention_beta",
            "mlp_beta_factor|layernorm_mlp_beta",
        ),
    }

    def read(fields: Fields, draft: Draft) -> None:
        for ours, theirs in names.items():
            spelt = [name.split("|") for name in theirs]
            values = [first(fields.number(*name), 1.0) for name in spelt]
            draft.put(f"residual.{ours}", values[0])
            for name, value in zip(spelt, values, strict=True):
                if value != values[0]:
                    fields.leave(name[0], value)

    def write(architecture: Architecture, config: Config) -> None:
        for ours, theirs in names.items():
            for name in theirs:
                config[name.split("|")[0]] = look(architecture, f"residual.{ours}")

    return Pair(read=read, write=write)


MINIMAX = family(
    "minimax",
    "MiniMaxForCausalLM",
    outer(d_model=4096, vocab_size=32000, eps=1e-5),
    always("norm.placement", "stream"),
    gqa("*", heads=32, kv_heads=8),
    rotary("*", theta=1_000_000.0),
    kinds(lightning="T"),
    fact("T.heads", "num_attention_heads", 32),
    fact("T.head_dim", "head_dim", lambda draft: draft.get("*.head_dim")),
    experts(n_experts=8, top_k=2, d_expert=14336, width="intermediate_size"),
    activation("E"),
    minimax_residual(),
    layers(32, minimax_mixers(), every("E")),
    only(postnorm=True, shared_intermediate_size=0),
    no_effect("shared_moe_mode"),
)


def rwkv_widths() -> Part:
    """RWKV-7's heads and its channel mixer, both from d_model where they are not given."""

    def read(fields: Fields, draft: Draft) -> None:
        d_model, head_dim = draft.get("d_model"), first(fields.integer("head_dim"), 64)
        draft.put("R.head_dim", head_dim)
        draft.put("R.heads", first(fields.integer("num_heads"), d_model // head_dim))
        ratio = first(fields.number("hidden_ratio"), 4.0)
        by_ratio = 32 * ((int(d_model * ratio) + 31) // 32)
        draft.put("r.width", first(fields.integer("intermediate_size"), by_ratio))
        if draft.get("R.heads") * head_dim != d_model:
            raise fields.error("head_dim", f"must divide hidden_size={d_model}, got {head_dim}")

    def write(architecture: Architecture, config: Config) -> None:
        config["head_dim"] = look(architecture, "R.head_dim")
        config["intermediate_size"] = look(architecture, "r.width")

    return Pair(read=read, write=write)


RWKV7 = family(
    "rwkv7",
    "RWKV7ForCausalLM",
    outer(d_model=2048, vocab_size=32000, eps=1e-5, eps_name="norm_eps"),
    always("norm.type", "layer"),
    always("embedding_norm", True),
    kinds(rwkv7="R", rwkv7_cmix="r"),
    rwkv_widths(),
    fact("R.decay_rank", "decay_low_rank_dim", 64),
    fact("R.a_rank", "a_low_rank_dim", 64),
    fact("R.v_rank", "v_low_rank_dim", 16),
    fact("R.gate_rank", "gate_low_rank_dim", 128),
    layers(24, every("R"), every("r")),
    only(norm_bias=True, norm_first=True, hidden_act="sqrelu"),
)


def lfm_mixers() -> Column:
    """LFM2's kinds, or the places of its attention."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        places = fields.integers("full_attn_idxs")
        return ["*" if places is None or i in places else "Y" for i in range(number)]

    return named("layer_types", {"conv": "Y", "full_attention": "*"}, absent)


def lfm_width() -> Part:
    """LFM2's feed-forward, two thirds of what a file says and rounded up, unless told not to."""

    def read(fields: Fields, draft: Draft) -> None:
        width = first(fields.integer("block_ff_dim"), fields.integer("intermediate_size"), 12288)
        adjusted = first(fields.flag("block_auto_adjust_ff_dim"), True)
        times = first(fields.number("block_ffn_dim_multiplier"), 1.0)
        grain = first(fields.integer("block_multiple_of"), 256)
        if adjusted:
            width = int(2 * width / 3)
            if not fields.is_null("block_ffn_dim_multiplier"):
                width = grain * -(-int(times * width) // grain)
        draft.put("-.width", width)

    def write(architecture: Architecture, config: Config) -> None:
        config["intermediate_size"] = look(architecture, "-.width")
        config["block_auto_adjust_ff_dim"] = False

    return Pair(read=read, write=write)


LFM2 = family(
    "lfm2",
    "Lfm2ForCausalLM",
    outer(
        d_model=2560,
        vocab_size=65536,
        eps=1e-5,
        eps_name="norm_eps|block_norm_eps",
        tied=True,
        tied_name="tie_word_embeddings|tie_embedding",
    ),
    gqa("*", heads=32, kv_heads=8),
    always("*.qk_norm", "head"),
    rotary("*", theta=1_000_000.0),
    kinds(shortconv="Y", ffn="-"),
    fact("Y.conv", "conv_L_cache", 3),
    lfm_width(),
    layers(32, lfm_mixers(), every("-")),
    only(conv_bias=False, block_use_swiglu=True),
    no_effect("block_dim", "conv_dim", "conv_dim_out", "num_heads", "full_attn_idxs"),
    no_effect("block_mlp_init_scale", "block_out_init_scale", "use_pos_enc"),
    no_effect("block_use_xavier_init", "conv_use_xavier_init", "use_xavier_init"),
)


def griffin_mixers() -> Column:
    """RecurrentGemma repeats a short list of kinds."""
    names = {"recurrent": "U", "attention": "W"}

    def read(fields: Fields, number: int) -> list[str]:
        given = fields.texts("block_types", "_block_types")
        cycle = ["recurrent", "recurrent", "attention"] if given is None else given
        if not cycle or set(cycle) - set(names):
            raise fields.error(
                "block_types", f"must be some of recurrent and attention, got {cycle[:8]}"
            )
        return [names[cycle[i % len(cycle)]] for i in range(number)]

    def write(symbols: list[str]) -> Config:
        back = {symbol: name for name, symbol in names.items()}
        if odd := next((symbol for symbol in symbols if symbol not in back), None):
            raise InputError(f"pattern: block_types has no name for {odd!r}; known: U, W")
        return {"block_types": [back[symbol] for symbol in symbols]}

    return Column(read=read, write=write)


def griffin_widths() -> Part:
    """RecurrentGemma's recurrence has d_model channels unless told, in as many blocks as heads."""

    def read(fields: Fields, draft: Draft) -> None:
        d_model, heads = draft.get("d_model"), draft.get("W.heads")
        draft.put("U.width", first(fields.integer("lru_width"), d_model))
        draft.put("U.blocks", heads)
        draft.put("W.head_dim", d_model // heads)
        fields.expect("head_dim", d_model // heads)
        draft.put("-.width", first(fields.integer("intermediate_size"), 7680) // 2)

    def write(architecture: Architecture, config: Config) -> None:
        if (hidden := look(architecture, "-.width")) is not None:
            config["intermediate_size"] = 2 * hidden
        if (width := look(architecture, "U.width")) is not None:
            config |= {"lru_width": width, "num_attention_heads": look(architecture, "U.blocks")}

    return Pair(read=read, write=write)


RECURRENT_GEMMA = family(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    outer(d_model=2560, vocab_size=256_000, eps=1e-6, tied=True),
    always("norm.zero_centered", True),
    always("embedding_scale", "sqrt_d_model"),
    cap("final_logit_softcap", "logits_soft_cap", 30.0),
    kinds(rglru="U", attn="W", ffn="-"),
    fact("W.heads", "num_attention_heads", 10),
    fact("W.kv_heads", "num_key_value_heads", lambda draft: draft.get("W.heads")),
    fact("W.qkv_bias", "attention_bias", False),
    always("W.o_bias", True),
    fact("W.window", "attention_window_size|sliding_window", 2048),
    griffin_widths(),
    fact("U.conv", "conv1d_width", 4),
    rotary("W", partial=0.5),
    always("-.bias", True),
    choice("-.activation", "hidden_activation", "gelu_pytorch_tanh", GATED),
    layers(26, griffin_mixers(), every("-")),
    only(embeddings_scale_by_sqrt_dim=True),
    no_effect("hidden_act", "layers_block_type", "layer_types"),
)

FAMILIES = (MINIMAX, RWKV7, LFM2, RECURRENT_GEMMA)
