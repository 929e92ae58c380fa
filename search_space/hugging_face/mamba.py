"""Families of Mamba: Mamba-2, Nemotron-H, Jamba, Zamba2, Falcon-H1, Granite 4."""

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

from ..architecture import Architecture
from ..document import InputError
from ..pattern import unroll
from .family import family
from .json_fields import Fields, first
from .layers import MAX_LAYERS, Column, every, layers, named, periodic
from .parts import (
    GATED,
    UNGATED,
    Config,
    Draft,
    Pair,
    Part,
    activation,
    always,
    biases,
    choice,
    dense,
    expert_groups,
    experts,
    fact,
    gqa,
    kinds,
    look,
    no_effect,
    only,
    outer,
    shared_width,
    softmax_scale,
)
from .positions import Switched, rotary


def expansion(theirs: str, default: int, width: Callable[[Draft], int | None], path: str) -> Part:
    """The inner width as a whole multiple of d_model. `width` is what a file says it to be."""

    def read(fields: Fields, draft: Draft) -> None:
        expanded = first(fields.integer(theirs), default) * draft.get("d_model")
        said = width(draft)
        if said is None:
            draft.put(path, expanded)
        elif said != expanded:
            raise fields.error(
                theirs,
                f"times hidden_size must be the width of all heads, got {expanded} and {said}",
            )

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get(path[0])
        if block is None:
            return
        times, rest = divmod(block.d_inner, architecture.d_model)
        if rest or not times:
            raise InputError(
                f"blocks.{path[0]}: {theirs} is a whole number, got a width of {block.d_inner} "
                f"for d_model={architecture.d_model}"
            )
        config[theirs] = times

    return Pair(read=read, write=write)


def _heads_width(draft: Draft) -> int:
    return draft.get("M.heads") * draft.get("M.head_dim")


def _inner(architecture: Architecture) -> int:
    block: Any = architecture.blocks["M"]
    return block.d_inner


def head_width(theirs: str, width: Callable[[Fields, Draft], int]) -> Part:
    """A Mamba-2 head's width; "auto" shares the inner width among the heads."""

    def read(fields: Fields, draft: Draft) -> None:
        automatic = fields.data.get(theirs) in (None, "auto")
        fields.pass_over(theirs)
        total, heads = width(fields, draft), draft.get("M.heads")
        each = total // heads if automatic else fields.integer(theirs)
        draft.put("M.head_dim", each)
        if each * heads != total:
            raise fields.error(
                theirs, f"times {heads} heads must be the inner width {total}, got {each}"
            )

    return Pair(
        read=read,
        write=lambda ours, config: config.update({theirs: look(ours, "M.head_dim") or "auto"}),
    )


MAMBA2 = family(
    "mamba2",
    "Mamba2ForCausalLM",
    outer(d_model=4096, vocab_size=32768, eps=1e-5, eps_name="layer_norm_epsilon"),
    kinds(mamba2="M"),
    fact("M.heads", "num_heads", 128),
    fact("M.head_dim", "head_dim", 64),
    expansion("expand", 2, _heads_width, "M.d_inner"),
    fact("M.d_state", "state_size", 128),
    fact("M.groups", "n_groups", 8),
    fact("M.conv", "conv_kernel", 4),
    fact("M.conv_bias", "use_conv_bias", True),
    layers(64, every("M")),
    only(use_bias=False, hidden_act="silu", rms_norm=True, norm_before_gate=False),
)

_NEMOTRON = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def nemotron_stack() -> Part:
    """Nemotron-H lists its sub-blocks by name, or as a string in the notation that is ours too."""

    def listed(fields: Fields, names: tuple[str, ...], pattern: str) -> list[str] | None:
        text = fields.text(pattern)
        given = fields.texts(*names)
        if given is not None:
            return named("|".join(names), _NEMOTRON, lambda *_: ()).read(fields, len(given))
        if text is None:
            return None
        if odd := next((c for c in text if c not in _NEMOTRON.values()), None):
            raise fields.error(pattern, f"unknown symbol {odd!r}; known: M * - E")
        return list(text)

    def read(fields: Fields, draft: Draft) -> None:
        names = ("layers_block_type", "layer_types")
        symbols = listed(fields, names, "hybrid_override_pattern") or ["M", "E", "*", "-"]
        number = fields.integer("num_hidden_layers")
        if number not in (None, len(symbols)):
            raise fields.error(
                "num_hidden_layers",
                f"contradicts the {len(symbols)} entries of {names[0]}: {number}",
            )
        if len(symbols) > MAX_LAYERS:
            raise fields.error(
                names[0], f"may have at most {MAX_LAYERS} entries, got {len(symbols)}"
            )
        draft.symbols = tuple(symbols)
        inner = listed(fields, ("mtp_layers_block_type",), "mtp_hybrid_override_pattern")
        if depth := fields.integer("num_nextn_predict_layers", least=0):
            draft.put("mtp", {"depth": depth, "pattern": "".join(inner or ["*", "E"])})

    def write(architecture: Architecture, config: Config) -> None:
        column = named("layers_block_type", _NEMOTRON, lambda *_: ())
        config |= column.write(list(architecture.symbols))
        config["num_hidden_layers"] = len(architecture.symbols)
        modules = architecture.mtp
        config["num_nextn_predict_layers"] = modules.depth if modules else 0
        if modules:
            inner = named("mtp_layers_block_type", _NEMOTRON, lambda *_: ())
            config |= inner.write(list(unroll(modules.pattern)))

    return Pair(read=read, write=write)


def optional_size(path: str, theirs: str) -> Part:
    """A size that a family may have; a null or an absence is none."""
    symbol = path.partition(".")[0]

    def write(architecture: Architecture, config: Config) -> None:
        if symbol in architecture.blocks:
            config[theirs] = look(architecture, path)

    return Pair(read=lambda fields, draft: draft.put(path, fields.integer(theirs)), write=write)


NEMOTRON_H = family(
    "nemotron_h",
    "NemotronHForCausalLM",
    outer(d_model=4096, vocab_size=131_072, eps=1e-5, eps_name="layer_norm_epsilon"),
    gqa("*", heads=32, kv_heads=8, head_dim=128),
    always("*.rope", None),
    kinds(mamba2="M"),
    fact("M.heads", "mamba_num_heads", 128),
    fact("M.head_dim", "mamba_head_dim", 64),
    fact("M.d_state", "ssm_state_size", 128),
    fact("M.groups", "n_groups|mamba_n_groups", 8),
    fact("M.conv", "conv_kernel|mamba_d_conv", 4),
    fact("M.conv_bias", "use_conv_bias|mamba_conv_bias", True),
    dense(21504),
    experts(n_experts=8, top_k=2, d_expert=7688, n="n_routed_experts|num_local_experts"),
    fact("E.n_shared", "n_shared_experts", 1, least=0),
    shared_width("moe_shared_expert_intermediate_size", 7688),
    optional_size("E.latent", "moe_latent_size"),
    fact("E.norm_topk", "norm_topk_prob", True),
    fact("E.scale", "routed_scaling_factor", 1.0),
    expert_groups(1, 1),
    always("E.router", "sigmoid_bias"),
    choice("- E.activation", "mlp_hidden_act", "relu2", UNGATED),
    nemotron_stack(),
    only(attention_bias=False, mlp_bias=False, use_bias=False, mamba_proj_bias=False),
    only(mamba_hidden_act="silu"),
    no_effect("expand", "mamba_expand", "moe_shared_expert_overlap", "hidden_act"),
    no_effect("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
)


def jamba_step_rank() -> Part:
    """Jamba's bottleneck of the step size, by default d_model / 16."""
    theirs = "mamba_dt_rank"

    def read(fields: Fields, draft: Draft) -> None:
        automatic = fields.data.get(theirs) in (None, "auto")
        fields.pass_over(theirs)
        rank = ceil(draft.get("d_model") / 16) if automatic else fields.integer(theirs)
        draft.put("m.dt_rank", rank)

    return Pair(
        read=read,
        write=lambda ours, config: config.update({theirs: look(ours, "m.dt_rank") or "auto"}),
    )


def jamba_feed_forwards() -> Column:
    """Jamba has experts in each so-many-th layer, unless there is but one."""
    placed = periodic("expert_layer_period", "expert_layer_offset", (2, 1), ("-", "E"))

    def read(fields: Fields, number: int) -> list[str]:
        one = fields.integer("num_experts", "num_local_experts") == 1
        symbols = placed.read(fields, number)
        return ["-"] * number if one else symbols

    return Column(read=read, write=placed.write)


JAMBA = family(
    "jamba",
    "JambaForCausalLM",
    outer(d_model=4096, vocab_size=65536, eps=1e-6),
    gqa("*", heads=32, kv_heads=8),
    always("*.rope", None),
    kinds(mamba1="m"),
    expansion("mamba_expand", 2, lambda _: None, "m.d_inner"),
    fact("m.d_state", "mamba_d_state", 16),
    jamba_step_rank(),
    fact("m.conv", "mamba_d_conv", 4),
    fact("m.conv_bias", "mamba_conv_bias", True),
    always("m.inner_norms", True),
    dense(14336),
    experts(
        n_experts=16,
        top_k=2,
        d_expert=14336,
        n="num_experts|num_local_experts",
        width="intermediate_size",
    ),
    always("E.norm_topk", False),
    activation("- E"),
    layers(
        32,
        periodic("attn_layer_period", "attn_layer_offset", (8, 4), ("m", "*")),
        jamba_feed_forwards(),
    ),
    only(mamba_proj_bias=False, mamba_inner_layernorms=True),
)


def zamba_stack() -> Part:
    """Zamba2's layers: Mamba-2, in the hybrid ones behind a use of the shared block."""
    theirs = "layers_block_type"
    names = {"linear_attention": "M", "hybrid": "@"}
    usual = "M" + "MMMMM@" * 7 + "MMMM@MMM@MM"

    def read(fields: Fields, draft: Draft) -> None:
        number = first(fields.integer("num_hidden_layers"), 54)
        if number > MAX_LAYERS:
            raise fields.error("num_hidden_layers", f"may be at most {MAX_LAYERS}, got {number}")

        def absent(*_: Any) -> Iterable[str]:
            if number != len(usual):
                raise fields.error(theirs, f"required field is missing for {number} layers")
            return usual

        listed = named(f"{theirs}|layer_types", names, absent).read(fields, number)
        draft.symbols = tuple(s for name in listed for s in ("@M" if name == "@" else "M"))

    def write(architecture: Architecture, config: Config) -> None:
        text = "".join(architecture.symbols).replace("@M", "h")
        back = {"h": "hybrid", "M": "linear_attention"}
        if odd := next((symbol for symbol in text if symbol not in back), None):
            raise InputError(f"pattern: layers are M or @M, got {odd!r} where neither is")
        config[theirs] = [back[symbol] for symbol in text]
        config["num_hidden_layers"] = len(text)

    return Pair(read=read, write=write)


def zamba_widths() -> Part:
    """Zamba2's widths that follow from d_model."""

    def read(fields: Fields, draft: Draft) -> None:
        d_model, heads = draft.get("d_model"), draft.get("@.heads")
        draft.put("@.head_dim", 2 * d_model // heads)
        given = fields.integer("intermediate_size", "ffn_hidden_size")
        draft.put("@.width", first(given, 4 * d_model))
        expanded = first(fields.integer("mamba_expand"), 2) * d_model
        draft.put("M.head_dim", expanded // draft.get("M.heads"))
        for name, value in (
            ("mamba_headdim", draft.get("M.head_dim")),
            ("attention_head_dim", draft.get("@.head_dim")),
            ("attention_hidden_size", 2 * d_model),
        ):
            fields.expect(name, value)

    def write(architecture: Architecture, config: Config) -> None:
        if (width := look(architecture, "@.width")) is not None:
            config["intermediate_size"] = width
        if "M" in architecture.blocks:
            config["mamba_expand"] = max(1, _inner(architecture) // architecture.d_model)

    return Pair(read=read, write=write)


ZAMBA2 = family(
    "zamba2",
    "Zamba2ForCausalLM",
    outer(d_model=2560, vocab_size=32000, eps=1e-5, tied=True),
    kinds(mamba2="M", shared="@"),
    fact("M.heads", "n_mamba_heads", 8),
    fact("M.d_state", "mamba_d_state", 64),
    fact("M.groups", "mamba_ngroups", 1),
    fact("M.conv", "mamba_d_conv", 4),
    fact("@.copies", "num_mem_blocks", 1),
    fact("@.heads", "num_attention_heads", 32),
    fact("@.kv_heads", "num_key_value_heads", lambda draft: draft.get("@.heads")),
    choice("@.activation", "hidden_act", "gelu", GATED),
    fact("@.adapter_rank", "adapter_rank|lora_rank", 128),
    zamba_widths(),
    Switched(
        rotary=rotary("@"),
        on=lambda fields: bool(fields.flag("use_mem_rope")),
        said=lambda on: {"use_mem_rope": on},
    ),
    zamba_stack(),
    only(use_shared_attention_adapter=False, use_shared_attention_lora=False),
    only(add_bias_linear=False, use_long_context=False, use_shared_block_lora=True),
    no_effect("hybrid_layer_ids", "kv_channels", "num_query_groups", "use_conv_bias"),
)


def falcon_width(fields: Fields, draft: Draft) -> int:
    """Falcon-H1's inner width, free of d_model."""
    given = first(fields.integer("mamba_d_ssm"), 1024)
    expanded = first(fields.integer("mamba_expand"), 2) * draft.get("d_model")
    return expanded if fields.is_null("mamba_d_ssm") else given


def falcon_multipliers() -> Part:
    """Falcon-H1's factors: those of the attention are its softmax scale and its values' scale."""
    lists = {"mlp_multipliers": 2, "ssm_multipliers": 5}

    def read(fields: Fields, draft: Draft) -> None:
        draft.put("embedding_scale", first(fields.number("embedding_multiplier"), 1.0))
        draft.put("logit_scale", first(fields.number("lm_head_multiplier"), 1.0))
        key, inward, outward = (
            first(fields.number(name), 1.0)
            for name in ("key_multiplier", "attention_in_multiplier", "attention_out_multiplier")
        )
        if key * inward**2 != 1:
            draft.put("*.softmax_scale", key * inward**2 * draft.get("*.head_dim") ** -0.5)
        draft.put("*.value_scale", inward * outward)
        for name in ("ssm_in_multiplier", "ssm_out_multiplier"):
            if first(fields.number(name), 1.0) != 1:
                fields.leave(name)
        for name in lists:
            if set(fields.numbers(name) or ()) - {1.0}:
                fields.leave(name)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("*")
        if block is not None:
            plain = block.head_dim**-0.5
            config["key_multiplier"] = (block.softmax_scale or plain) / plain
            config["attention_out_multiplier"] = block.value_scale
        config["embedding_multiplier"] = architecture.embedding_scale
        config["lm_head_multiplier"] = architecture.logit_scale

    return Pair(read=read, write=write)


def falcon_norm() -> Part:
    """Falcon-H1's norm in the mixer; ours is behind the gate, as there where it is not before it."""

    def read(fields: Fields, draft: Draft) -> None:
        on = first(fields.flag("mamba_rms_norm"), False)
        draft.put("M.gated_norm", on)
        if first(fields.flag("mamba_norm_before_gate"), True) and on:
            fields.leave("mamba_norm_before_gate", True)

    def write(architecture: Architecture, config: Config) -> None:
        config["mamba_rms_norm"] = bool(look(architecture, "M.gated_norm"))
        config["mamba_norm_before_gate"] = False

    return Pair(read=read, write=write)


def falcon_inner() -> Part:
    """The inner width itself, which `head_width` has read."""

    def write(architecture: Architecture, config: Config) -> None:
        if "M" in architecture.blocks:
            config["mamba_d_ssm"] = _inner(architecture)

    return Pair(read=lambda *_: None, write=write)


FALCON_H1 = family(
    "falcon_h1",
    "FalconH1ForCausalLM",
    outer(d_model=4096, vocab_size=128_000, eps=1e-5),
    gqa("*", heads=32, kv_heads=8),
    biases("*"),
    rotary("*"),
    falcon_multipliers(),
    kinds(mamba2="M"),
    fact("M.heads", "mamba_n_heads", 128),
    head_width("mamba_d_head", falcon_width),
    falcon_inner(),
    fact("M.d_state", "mamba_d_state", 256),
    fact("M.groups", "mamba_n_groups", 1),
    fact("M.conv", "mamba_d_conv", 4),
    fact("M.conv_bias", "mamba_conv_bias", True),
    falcon_norm(),
    dense(14336),
    activation("-"),
    fact("-.bias", "mlp_bias", False),
    layers(32, every("[*|M]"), every("-")),
    only(mamba_proj_bias=False, projectors_bias=False, mamba_use_mlp=True),
    no_effect("layer_types", "layers_block_type"),
)


def granite_width(fields: Fields, draft: Draft) -> int:
    return first(fields.integer("mamba_expand"), 2) * draft.get("d_model")


def inverse(path: str, theirs: str, default: float) -> Part:
    """A factor of ours that is a divisor of theirs."""

    def read(fields: Fields, draft: Draft) -> None:
        given = first(fields.number(theirs), default)
        if given <= 0:
            raise fields.error(theirs, f"must be above zero, got {given}")
        draft.put(path, 1 / given)

    return Pair(read=read, write=lambda ours, config: config.update({theirs: 1 / look(ours, path)}))


def granite_feed_forwards() -> Column:
    """Granite: experts beside a shared one in each layer, or the shared one alone."""

    def read(fields: Fields, number: int) -> list[str]:
        experts_ = first(fields.integer("num_local_experts", least=0), 8)
        return ["E" if experts_ else "-"] * number

    def write(symbols: list[str]) -> Config:
        return {} if "E" in symbols else {"num_local_experts": 0, "num_experts_per_tok": 0}

    return Column(read=read, write=write)


def granite_experts() -> Part:
    """Granite's sizes; without experts the shared feed-forward is all there is."""
    names = {
        "n_experts": ("num_local_experts", 8),
        "top_k": ("num_experts_per_tok", 2),
        "d_expert": ("intermediate_size", 11008),
    }

    def read(fields: Fields, draft: Draft) -> None:
        shared = first(fields.integer("shared_intermediate_size", least=0), 1024)
        draft.put("-.width", shared)
        for ours, (theirs, default) in names.items():
            draft.put(f"E.{ours}", first(fields.integer(theirs, least=0), default))
        draft.put("E.n_shared", 1 if shared else 0)
        if shared and shared != draft.get("E.d_expert"):
            draft.put("E.d_shared", shared)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("E")
        if block is None:
            config["shared_intermediate_size"] = look(architecture, "-.width")
            return
        for ours, (theirs, _) in names.items():
            config[theirs] = look(architecture, f"E.{ours}")
        config["shared_intermediate_size"] = block.shared_width

    return Pair(read=read, write=write)


GRANITEMOEHYBRID = family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    outer(d_model=4096, vocab_size=32000, eps=1e-6),
    fact("residual.add", "residual_multiplier", 1.0),
    fact("embedding_scale", "embedding_multiplier", 1.0),
    inverse("logit_scale", "logits_scaling", 1.0),
    gqa("*", heads=32),
    biases("*"),
    softmax_scale("*", "attention_multiplier", 1.0),
    Switched(
        rotary=rotary("*"),
        on=lambda fields: fields.text("position_embedding_type") == "rope",
        said=lambda on: {"position_embedding_type": "rope" if on else "nope"},
    ),
    kinds(mamba2="M", ffn="-", moe="E"),
    fact("M.heads", "mamba_n_heads", 128),
    head_width("mamba_d_head", granite_width),
    expansion("mamba_expand", 2, _heads_width, "M.d_inner"),
    fact("M.d_state", "mamba_d_state", 256),
    fact("M.groups", "mamba_n_groups", 1),
    fact("M.conv", "mamba_d_conv", 4),
    fact("M.conv_bias", "mamba_conv_bias", True),
    granite_experts(),
    activation("- E"),
    layers(
        32,
        named(
            "layer_types|layers_block_type",
            {"linear_attention": "M", "full_attention": "*"},
            lambda _, number: ["M"] * number,
        ),
        granite_feed_forwards(),
    ),
    only(mamba_proj_bias=False, normalization_function="rmsnorm"),
)

FAMILIES = (MAMBA2, NEMOTRON_H, JAMBA, ZAMBA2, FALCON_H1, GRANITEMOEHYBRID)
