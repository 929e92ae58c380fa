"""Families of attention and experts: from Mixtral to GLM-4.5, Llama 4, MiniMax and MiMo."""

from collections.abc import Iterable
from typing import Any

from ..architecture import Architecture
from ..document import InputError
from .family import family
from .json_fields import Fields, first
from .layers import (
    ATTENTION,
    Column,
    dense_first,
    every,
    layers,
    marked,
    named,
    one_in,
    only_dense,
    window_everywhere,
)
from .parts import (
    Config,
    Draft,
    Pair,
    Part,
    activation,
    always,
    biases,
    dense,
    expert_groups,
    experts,
    fact,
    first_block,
    gqa,
    kinds,
    look,
    mtp,
    no_effect,
    only,
    outer,
    shared_width,
)
from .positions import rotary

_DENSE_OR_SPARSE = {"dense": "-", "sparse": "E"}


def qk_norm(symbols: str, kind: str, default: bool, theirs: str = "use_qk_norm") -> Part:
    """A switch for the norms of queries and keys."""

    def read(fields: Fields, draft: Draft) -> None:
        on = first(fields.flag(theirs), default)
        draft.put(f"{symbols}.qk_norm", kind if on else "none")

    return Pair(
        read=read,
        write=lambda ours, config: config.update(
            {theirs: look(ours, f"{symbols}.qk_norm") not in (None, "none")}
        ),
    )


_windows, _window = window_everywhere(None)


MIXTRAL = family(
    "mixtral",
    "MixtralForCausalLM",
    outer(d_model=4096, vocab_size=32000, eps=1e-5),
    gqa("* W", heads=32, kv_heads=8),
    _window,
    rotary("* W", theta=1_000_000.0),
    experts(n_experts=8, top_k=2, d_expert=14336, width="intermediate_size"),
    activation("E"),
    layers(32, _windows, every("E")),
)


_qwen_mixers, _qwen_window = window_everywhere(4096, switch="use_sliding_window")


QWEN3_MOE = family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    outer(d_model=2048, vocab_size=151_936, eps=1e-6),
    gqa("* W", heads=32, kv_heads=4),
    biases("* W"),
    always("* W.qk_norm", "head"),
    _qwen_window,
    rotary("* W"),
    dense(6144),
    experts(n_experts=128, top_k=8, d_expert=768, n="num_experts|num_local_experts"),
    fact("E.norm_topk", "norm_topk_prob", False),
    activation("- E"),
    layers(24, _qwen_mixers, only_dense("decoder_sparse_step", "mlp_only_layers")),
    no_effect("max_window_layers"),
)


_GPT_OSS_YARN = {
    "type": "yarn",
    "factor": 32.0,
    "original_context": 4096,
    "truncate": False,
}


GPT_OSS = family(
    "gpt_oss",
    "GptOssForCausalLM",
    outer(d_model=2880, vocab_size=201_088, eps=1e-5),
    gqa("* W", heads=64, kv_heads=8, head_dim=64),
    biases("* W", True),
    always("* W.sinks", True),
    fact("W.window", "sliding_window", 128),
    rotary("* W", theta=150_000.0, scaling=_GPT_OSS_YARN),
    experts(n_experts=128, top_k=4, d_expert=2880, width="intermediate_size"),
    always("E.router_bias", True),
    always("E.expert_bias", True),
    always("E.activation", "swiglu_oai"),
    only(hidden_act="silu", swiglu_alpha=1.702, swiglu_limit=7.0),
    only(experts_per_token=4, initial_context_length=4096),
    layers(36, named("layer_types", ATTENTION, one_in(("W", "*"), 2)), every("E")),
)


PHIMOE = family(
    "phimoe",
    "PhimoeForCausalLM",
    outer(d_model=4096, vocab_size=32064, eps=1e-5),
    always("norm.type", "layer"),
    fact("lm_head_bias", "lm_head_bias", False),
    gqa("* W", heads=32, kv_heads=8),
    biases("* W"),
    _window,
    rotary("* W", theta=1_000_000.0),
    experts(n_experts=16, top_k=2, d_expert=6400, width="intermediate_size"),
    always("E.router", "sparsemixer"),
    always("E.norm_topk", False),
    activation("E"),
    layers(32, _windows, every("E")),
)


def same_everywhere(path: str, theirs: str, default: int) -> Part:
    """A number that files may repeat for each layer (Hunyuan)."""
    names = tuple(theirs.split("|"))

    def read(fields: Fields, draft: Draft) -> None:
        if not isinstance(fields.given(*names), list):
            draft.put(path, first(fields.integer(*names), default))
            return
        numbers = fields.integers(*names) or []
        if len(set(numbers)) != 1:
            raise fields.error(names[0], f"must be the same in every layer, got {numbers[:8]}")
        draft.put(path, numbers[0])

    return Pair(read=read, write=lambda ours, config: config.update({names[0]: look(ours, path)}))


def hunyuan_leftovers() -> Part:
    """Fields of Hunyuan's own code, some repeated for each layer."""

    def read(fields: Fields, draft: Draft) -> None:
        width = draft.get("E.d_expert")
        for name, expected in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
            value = fields.given(name)
            if value is not None and any(v != expected for v in _listed(value)):
                fields.leave(name)

    return Pair(read=read, write=lambda *_: None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


HUNYUAN_V1_MOE = family(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    outer(d_model=4096, vocab_size=290_943, eps=1e-5),
    gqa("*", heads=32),
    biases("*"),
    qk_norm("*", "head", True),
    rotary("*"),
    kinds(moe="E"),
    same_everywhere("E.n_experts", "num_experts|num_local_experts", 1),
    same_everywhere("E.top_k", "moe_topk|num_experts_per_tok", 1),
    same_everywhere("E.d_expert", "intermediate_size", 11008),
    always("E.n_shared", 1),
    activation("E"),
    layers(32, every("*"), every("E")),
    hunyuan_leftovers(),
)


def no_rope_layers() -> Column:
    """Llama 4: layers without positions see everything, the others their own chunk."""

    def positions(fields: Fields, number: int) -> list[str]:
        step = first(fields.integer("no_rope_layer_interval"), 4)
        given = fields.integers("no_rope_layers")
        if given and len(given) < number:
            raise fields.error(
                "no_rope_layers", f"must have num_hidden_layers={number} entries, got {len(given)}"
            )
        if given:
            return ["C" if uses_rope else "*" for uses_rope in given[:number]]
        return ["*" if (i + 1) % step == 0 else "C" for i in range(number)]

    listed = named("layer_types", {"chunked_attention": "C", "full_attention": "*"}, positions)

    def read(fields: Fields, number: int) -> list[str]:
        symbols, by_rope = listed.read(fields, number), positions(fields, number)
        if symbols != by_rope:
            raise fields.error("layer_types", "contradicts no_rope_layers: a chunk goes with RoPE")
        return symbols

    def write(symbols: list[str]) -> Config:
        rope = [int(symbol == "C") for symbol in symbols]
        return listed.write(symbols) | {"no_rope_layers": rope}

    return Column(read=read, write=write)


def chunk() -> Part:
    """The reach of Llama 4's layers with positions."""
    theirs = "attention_chunk_size"

    def read(fields: Fields, draft: Draft) -> None:
        if fields.is_null(theirs):
            raise fields.error(theirs, "must be a whole number: RoPE goes with a chunk, got null")
        draft.put("C.chunk", first(fields.integer(theirs), 8192))

    return Pair(
        read=read, write=lambda ours, config: config.update({theirs: look(ours, "C.chunk") or 8192})
    )


def moe_layers() -> Column:
    """Llama 4: experts in the layers of a list, or in each so-many-th."""

    def read(fields: Fields, number: int) -> list[str]:
        step = first(fields.integer("interleave_moe_layer_step"), 1)
        given = fields.integers("moe_layers")
        sparse = set(range(step - 1, number, step)) if given is None else set(given)
        return ["E" if i in sparse else "-" for i in range(number)]

    def write(symbols: list[str]) -> Config:
        return {"moe_layers": [i for i, symbol in enumerate(symbols) if symbol == "E"]}

    return Column(read=read, write=write)


def temperature() -> Part:
    """Llama 4's queries grow with the position where there is no RoPE."""

    def read(fields: Fields, draft: Draft) -> None:
        scale = first(fields.number("attn_scale"), 0.1)
        floor = first(fields.integer("floor_scale"), 8192)
        if first(fields.flag("attn_temperature_tuning"), True):
            draft.put("*.temperature", {"scale": scale, "floor": floor})

    def write(architecture: Architecture, config: Config) -> None:
        tuned = look(architecture, "*.temperature")
        config["attn_temperature_tuning"] = tuned is not None
        if tuned:
            config |= {"attn_scale": tuned.scale, "floor_scale": tuned.floor}

    return Pair(read=read, write=write)


def l2_norms() -> Part:
    """Llama 4 norms queries and keys without a weight, where they are rotated."""

    def read(fields: Fields, draft: Draft) -> None:
        on = first(fields.flag("use_qk_norm"), True)
        draft.put("C.qk_norm", "l2" if on else "none")

    return Pair(
        read=read,
        write=lambda ours, config: config.update(use_qk_norm=look(ours, "C.qk_norm") == "l2"),
    )


LLAMA4_TEXT = family(
    "llama4_text",
    "Llama4ForCausalLM",
    outer(d_model=5120, vocab_size=202_048, eps=1e-5),
    gqa("C *", heads=40, kv_heads=8, head_dim=128),
    biases("C *"),
    chunk(),
    rotary("C", theta=500_000.0, interleaved=True),
    always("*.rope", None),
    temperature(),
    l2_norms(),
    dense(16384, theirs="intermediate_size_mlp"),
    experts(n_experts=16, top_k=1, d_expert=8192, width="intermediate_size"),
    always("E.n_shared", 1),
    always("E.router", "sigmoid"),
    always("E.norm_topk", False),
    always("E.scale_input", True),
    activation("- E"),
    layers(48, no_rope_layers(), moe_layers()),
)


def all_ones(theirs: str) -> Part:
    """A list that says for each layer that it has full attention."""

    def read(fields: Fields, _: Draft) -> None:
        if set(fields.integers(theirs) or ()) - {1}:
            fields.leave(theirs)

    return Pair(read=read, write=lambda *_: None)


def m2_mtp() -> Part:
    """MiniMax-M2 says by three fields how many modules there are."""

    def read(fields: Fields, draft: Draft) -> None:
        depth = first(fields.integer("num_mtp_modules", least=0), 0)
        on = first(fields.flag("use_mtp"), depth > 0)
        fields.expect("mtp_transformer_layers", 1)
        if on and depth:
            draft.put("mtp", {"depth": depth, "pattern": "*E"})

    def write(architecture: Architecture, config: Config) -> None:
        if architecture.mtp:
            config["num_mtp_modules"] = architecture.mtp.depth
            config |= {"use_mtp": True, "mtp_transformer_layers": 1}

    return Pair(read=read, write=write)


MINIMAX_M2 = family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    outer(d_model=3072, vocab_size=200_064, eps=1e-6),
    gqa("*", heads=48, kv_heads=8, head_dim=128),
    qk_norm("*", "full", True),
    rotary("*", theta=5_000_000.0),
    experts(n_experts=256, top_k=8, d_expert=1536, width="intermediate_size"),
    always("E.router", "sigmoid_bias"),
    activation("E"),
    layers(62, every("*"), every("E")),
    m2_mtp(),
    only(qk_norm_type="per_layer", scoring_func="sigmoid", use_routing_bias=True),
    only(shared_intermediate_size=0, attention_bias=False),
    all_ones("attn_type_list"),
)


def sparse_blocks() -> Part:
    """MiniMax-M3's index branch, flat as transformers has it or in an object of its own."""
    names = {
        "index_heads": ("index_n_heads", "sparse_num_index_heads", 4),
        "index_dim": ("index_head_dim", "sparse_index_dim", 128),
        "block": ("index_block_size", "sparse_block_size", 128),
        "top_k": ("index_topk_blocks", "sparse_topk_blocks", 16),
        "local_blocks": ("index_local_blocks", "sparse_local_block", 1),
    }

    def read(fields: Fields, draft: Draft) -> None:
        old = fields.part("sparse_attention_config")
        for ours, (flat, inner, default) in names.items():
            given = first(old and old.integer(inner), fields.integer(flat), default)
            draft.put(f"S.block_sparse.{ours}", given)
        if old:
            old.expect("use_sparse_attention", True)
            old.expect("sparse_score_type", "max")
            old.expect("sparse_init_block", 0)
            old.pass_over("sparse_disable_index_value")

    def write(architecture: Architecture, config: Config) -> None:
        for ours, (flat, _, _) in names.items():
            value = look(architecture, f"S.block_sparse.{ours}")
            if value is not None:
                config[flat] = value

    return Pair(read=read, write=write)


def m3_columns() -> tuple[Column, Column]:
    """MiniMax-M3's two lists of kinds, and their older zeros and ones."""

    def mixers(fields: Fields, number: int) -> Iterable[str]:
        old = fields.part("sparse_attention_config")
        of_old = old and marked("sparse_attention_freq", ("*", "S"))(old, number)
        return of_old or ["*"] * number

    def rest(fields: Fields, number: int) -> Iterable[str]:
        return marked("moe_layer_freq", ("-", "E"))(fields, number) or ["E"] * number

    kinds_of = {"full_attention": "*", "minimax_m3_sparse": "S"}
    return (
        named("layer_types", kinds_of, mixers),
        named("mlp_layer_types", _DENSE_OR_SPARSE, rest),
    )


_m3_mixers, _m3_rest = m3_columns()


MINIMAX_M3_VL_TEXT = family(
    "minimax_m3_vl_text",
    "MiniMaxM3VLForCausalLM",
    outer(d_model=6144, vocab_size=200_064, eps=1e-6),
    always("norm.zero_centered", True),
    gqa("* S", heads=64, kv_heads=4, head_dim=128),
    qk_norm("* S", "head", True),
    sparse_blocks(),
    rotary("* S", theta=5_000_000.0, partial=0.5),
    dense(12288, theirs="dense_intermediate_size"),
    experts(n_experts=128, top_k=4, d_expert=3072, width="intermediate_size"),
    fact("E.scale", "routed_scaling_factor", 2.0),
    shared_width("shared_intermediate_size", 3072),
    always("E.router", "sigmoid_bias"),
    always("- E.activation", "swiglu_oai"),
    layers(60, _m3_mixers, _m3_rest),
    only(hidden_act=("silu", "swigluoai"), swiglu_alpha=1.702, swiglu_limit=7.0),
    only(swiglu_beta=1.0, use_gemma_norm=True, qk_norm_type="per_head", n_shared_experts=1),
    only(scoring_func="sigmoid", use_routing_bias=True, attention_output_gate=False),
)


def value_scale() -> Part:
    """MiMo multiplies values by a constant; a null is none."""

    def read(fields: Fields, draft: Draft) -> None:
        given = first(fields.number("attention_value_scale"), 0.707)
        draft.put("* W.value_scale", 1.0 if fields.is_null("attention_value_scale") else given)

    return Pair(
        read=read,
        write=lambda ours, config: config.update(
            attention_value_scale=look(ours, "* W.value_scale")
        ),
    )


def mimo_columns() -> tuple[Column, Column]:
    """MiMo's two lists of kinds, and their older zeros and ones."""

    def mixers(fields: Fields, number: int) -> Iterable[str]:
        every_sixth = ["*" if i == 0 or (i + 1) % 6 == 0 else "W" for i in range(number)]
        return marked("hybrid_layer_pattern", ("*", "W"))(fields, number) or every_sixth

    def rest(fields: Fields, number: int) -> Iterable[str]:
        return marked("moe_layer_freq", ("-", "E"))(fields, number) or ["-", *["E"] * (number - 1)]

    return (
        named("layer_types", ATTENTION, mixers),
        named("mlp_layer_types", _DENSE_OR_SPARSE, rest),
    )


def mimo_window() -> Part:
    """MiMo's windowed layers. `sliding_window_size` does not count the token itself."""

    def read(fields: Fields, draft: Draft) -> None:
        behind = fields.integer("sliding_window_size")
        given = fields.integer("sliding_window")
        draft.put("W.window", first(behind and behind + 1, given, 129))
        heads, kv_heads = draft.get("*.heads"), draft.get("*.kv_heads")
        fields.pass_over("attention_chunk_size")
        draft.put("W.heads", first(fields.integer("swa_num_attention_heads"), heads))
        draft.put("W.kv_heads", first(fields.integer("swa_num_key_value_heads"), 2 * kv_heads))
        draft.put("W.head_dim", first(fields.integer("swa_head_dim"), draft.get("*.head_dim")))
        draft.put(
            "W.v_head_dim", first(fields.integer("swa_v_head_dim"), draft.get("*.v_head_dim"))
        )
        draft.put("W.sinks", first(fields.flag("add_swa_attention_sink_bias"), True))
        draft.put("*.sinks", first(fields.flag("add_full_attention_sink_bias"), False))

    def write(architecture: Architecture, config: Config) -> None:
        window: Any = first_block(architecture, ("W",))
        if window is None:
            return
        full: Any = first_block(architecture, ("*",))
        if full is not None and window.kv_heads != 2 * full.kv_heads:
            raise InputError(
                "blocks.W.kv_heads must be twice those of the full attention, got "
                f"{window.kv_heads} and {full.kv_heads}"
            )
        config["sliding_window"] = window.window

    return Pair(read=read, write=write)


_mimo_mixers, _mimo_rest = mimo_columns()


MIMO_V2_FLASH = family(
    "mimo_v2_flash",
    "MiMoV2FlashForCausalLM",
    outer(d_model=4096, vocab_size=152_576, eps=1e-5, eps_name="rms_norm_eps|layernorm_epsilon"),
    gqa("*", heads=64, kv_heads=4, head_dim=192),
    kinds(attn="W"),
    fact("*.v_head_dim", "v_head_dim", 128),
    fact("* W.qkv_bias", "attention_bias", False),
    value_scale(),
    mimo_window(),
    rotary("*", theta=5_000_000.0, partial=0.334, label="full_attention"),
    rotary(
        "W",
        partial=0.334,
        label="sliding_attention",
        old_theta="swa_rope_theta",
        old_scaling=None,
    ),
    dense(16384),
    experts(n_experts=256, top_k=8, d_expert=2048, n="n_routed_experts|num_local_experts"),
    fact("E.norm_topk", "norm_topk_prob", True),
    fact("E.scale", "routed_scaling_factor", 1.0),
    expert_groups(1, 1),
    always("E.router", "sigmoid_bias"),
    activation("- E"),
    layers(48, _mimo_mixers, _mimo_rest),
    only(scoring_func="sigmoid", topk_method="noaux_tc", n_shared_experts=0),
)


GLM4_MOE = family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    outer(d_model=4096, vocab_size=151_552, eps=1e-5),
    gqa("*", heads=96, kv_heads=8),
    fact("*.qkv_bias", "attention_bias", False),
    qk_norm("*", "head", False),
    rotary("*", partial=0.5),
    dense(10944),
    experts(n_experts=128, top_k=8, d_expert=1408, n="n_routed_experts|num_local_experts"),
    fact("E.n_shared", "n_shared_experts", 1, least=0),
    fact("E.norm_topk", "norm_topk_prob", True),
    fact("E.scale", "routed_scaling_factor", 1.0),
    expert_groups(1, 1),
    always("E.router", "sigmoid_bias"),
    activation("- E"),
    layers(46, every("*"), dense_first("first_k_dense_replace", 1)),
    mtp("num_nextn_predict_layers|num_mtp_layers", "*E", 1),
    only(scoring_func="sigmoid", topk_method="noaux_tc"),
)


FAMILIES = (
    MIXTRAL,
    QWEN3_MOE,
    GPT_OSS,
    PHIMOE,
    HUNYUAN_V1_MOE,
    LLAMA4_TEXT,
    MINIMAX_M2,
    MINIMAX_M3_VL_TEXT,
    MIMO_V2_FLASH,
    GLM4_MOE,
)
