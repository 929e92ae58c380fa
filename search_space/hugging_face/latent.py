"""Families of multi-head latent attention: DeepSeek V2 to V4, Kimi Linear, Kimi K3."""

from collections.abc import Iterable
from typing import Any

from ..architecture import Architecture
from .family import family
from .json_fields import Fields, first
from .layers import Column, dense_first, every, layers, named
from .parts import (
    Config,
    Draft,
    Pair,
    Part,
    activation,
    always,
    choice,
    dense,
    expert_groups,
    experts,
    fact,
    kinds,
    look,
    mtp,
    no_effect,
    only,
    outer,
    whole_heads,
)
from .positions import Switched, read_scaling, rotary


def mla(symbol: str, *, heads: int, q_lora_rank: int | None) -> tuple[Part, ...]:
    """Latent attention as DeepSeek-V2 named its sizes."""
    return (
        *kinds(mla=symbol),
        fact(f"{symbol}.heads", "num_attention_heads", heads),
        latent_queries(symbol, q_lora_rank),
        fact(f"{symbol}.kv_lora_rank", "kv_lora_rank", 512),
        fact(f"{symbol}.qk_nope_head_dim", "qk_nope_head_dim", 128),
        fact(f"{symbol}.qk_rope_head_dim", "qk_rope_head_dim", 64),
        fact(f"{symbol}.v_head_dim", "v_head_dim", 128),
        only(attention_bias=False, mlp_bias=False),
        no_effect("num_key_value_heads", "head_dim", "qk_head_dim"),
    )


def latent_queries(symbol: str, default: int | None) -> Part:
    """The rank of the queries; a null projects them directly."""
    theirs, path = "q_lora_rank", f"{symbol}.q_lora_rank"

    def read(fields: Fields, draft: Draft) -> None:
        given = fields.integer(theirs)
        draft.put(path, None if fields.is_null(theirs) else given or default)

    def write(architecture: Architecture, config: Config) -> None:
        if symbol in architecture.blocks:
            config[theirs] = look(architecture, path)

    return Pair(read=read, write=write)


def deepseek_experts(
    *, n_experts: int, top_k: int | None, d_expert: int, n_shared: int, scale: float
) -> tuple[Part, ...]:
    return (
        *experts(
            n_experts=n_experts,
            top_k=top_k,
            d_expert=d_expert,
            n="n_routed_experts|num_local_experts|num_experts",
        ),
        fact("E.n_shared", "n_shared_experts", n_shared, least=0),
        fact("E.scale", "routed_scaling_factor", scale),
        only(moe_layer_freq=1),
    )


def indexer(symbols: str, *, heads: int, head_dim: int, top_k: int) -> tuple[Part, ...]:
    """DeepSeek Sparse Attention's indexer."""
    return (
        fact(f"{symbols}.indexer.heads", "index_n_heads", heads),
        fact(f"{symbols}.indexer.head_dim", "index_head_dim", head_dim),
        fact(f"{symbols}.indexer.top_k", "index_topk", top_k),
    )


def delta_attention(published: bool) -> Part:
    """Kimi Delta Attention: flat as transformers has it, or in `linear_attn_config`."""

    def read(fields: Fields, draft: Draft) -> None:
        old = fields.part("linear_attn_config")

        def size(inner: str, flat: str, default: int) -> int:
            return first(old and old.integer(inner), fields.integer(flat), default)

        draft.put("K.heads", size("num_heads", "linear_num_heads", 32))
        draft.put("K.conv", size("short_conv_kernel_size", "linear_conv_kernel_dim", 4))
        width = size("head_dim", "linear_head_dim", 128)
        for ours in ("k_head_dim", "v_head_dim", "gate_rank"):
            draft.put(f"K.{ours}", width)
        if published and old:
            draft.put("K.full_rank_gate", first(old.flag("use_full_rank_gate"), False))
            draft.put("K.gate_lower_bound", old.number("gate_lower_bound"))

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get("K")
        if block is None:
            return
        if not published:
            config |= {
                "linear_num_heads": block.heads,
                "linear_head_dim": block.k_head_dim,
                "linear_conv_kernel_dim": block.conv,
            }
            return
        config.setdefault("linear_attn_config", {}).update(
            num_heads=block.heads,
            head_dim=block.k_head_dim,
            short_conv_kernel_size=block.conv,
            use_full_rank_gate=block.full_rank_gate,
            gate_lower_bound=block.gate_lower_bound,
        )

    return Pair(read=read, write=write)


def kimi_mixers(published: bool) -> Column:
    """Kimi's kinds, or its older lists of layers, which count from one."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        old = fields.part("linear_attn_config")
        full = old and old.integers("full_attn_layers")
        delta = old and old.integers("kda_layers")
        if old is None or full is None or delta is None:
            return ["L" if i and i % 4 == 0 else "K" for i in range(number)]
        if sorted(full + delta) != list(range(1, number + 1)):
            raise old.error(
                "full_attn_layers",
                f"must name with kda_layers each layer from 1 to num_hidden_layers={number} once",
            )
        return ["L" if i + 1 in full else "K" for i in range(number)]

    listed = named("layer_types", {"linear_attention": "K", "full_attention": "L"}, absent)

    def write(symbols: list[str]) -> Config:
        listed.write(symbols)
        return {
            "linear_attn_config": {
                "full_attn_layers": [i + 1 for i, s in enumerate(symbols) if s == "L"],
                "kda_layers": [i + 1 for i, s in enumerate(symbols) if s == "K"],
            }
        }

    return Column(read=listed.read, write=write if published else listed.write)


def attention_residuals() -> Part:
    """Kimi-K3's attention over earlier groups of layers."""
    theirs = "attn_res_block_size"

    def read(fields: Fields, draft: Draft) -> None:
        if (block := fields.integer(theirs)) is not None:
            draft.put("attention_residuals", {"block": block})

    def write(architecture: Architecture, config: Config) -> None:
        config[theirs] = look(architecture, "attention_residuals.block")

    return Pair(read=read, write=write)


def latent_experts() -> Part:
    """Kimi-K3's experts work in a width of their own."""

    def read(fields: Fields, draft: Draft) -> None:
        latent = fields.integer("routed_expert_hidden_size")
        norm = fields.flag("latent_moe_use_norm")
        draft.put("E.latent", latent)
        draft.put("E.latent_norm", bool(latent and norm))

    def write(architecture: Architecture, config: Config) -> None:
        if "E" in architecture.blocks:
            config["routed_expert_hidden_size"] = look(architecture, "E.latent")
            config["latent_moe_use_norm"] = look(architecture, "E.latent_norm")

    return Pair(read=read, write=write)


def kimi(published: bool) -> tuple[Part, ...]:
    """Kimi Linear as transformers spells it, or with what Kimi-K3 added, as it was published."""
    activations = {"situ": "situ", "silu": "swiglu"} if published else {"silu": "swiglu"}
    parts = (
        *outer(d_model=2304, vocab_size=163_840, eps=1e-5),
        *kinds(kda="K"),
        *mla("L", heads=32, q_lora_rank=None),
        *dense(9216),
        *experts(
            n_experts=256,
            top_k=8,
            d_expert=1024,
            n="num_experts|num_local_experts" if published else "num_local_experts|num_experts",
            per_token="num_experts_per_tok|num_experts_per_token",
        ),
        fact("E.n_shared", "n_shared_experts|num_shared_experts", 1, least=0),
        fact("E.norm_topk", "norm_topk_prob|moe_renormalize", True),
        fact("E.scale", "routed_scaling_factor", 2.446),
        expert_groups(1, 1, number="n_group|num_expert_group"),
        always("E.router", "sigmoid_bias"),
        choice("- E.activation", "hidden_act", "silu", activations),
        layers(27, kimi_mixers(published), dense_first("first_k_dense_replace", 1)),
        delta_attention(published),
        only(moe_router_activation_func="sigmoid", use_grouped_topk=True, topk_method="noaux_tc"),
        only(num_nextn_predict_layers=0, moe_layer_freq=1),
    )
    if not published:
        return (
            *parts,
            always("L.rope", None),
            only(mla_use_nope=True),
            no_effect("rope_theta", "rope_scaling", "rope_parameters"),
        )
    return (
        *parts,
        Switched(
            rotary=rotary("L", interleaved=True),
            on=lambda fields: not fields.flag("mla_use_nope"),
            said=lambda on: {"mla_use_nope": not on},
        ),
        fact("L.out_gate", "mla_use_output_gate", False),
        attention_residuals(),
        latent_experts(),
        only(activation_situ_beta=4.0, activation_situ_linear_beta=25.0),
    )


def v2_groups() -> Part:
    """DeepSeek-V2 looks at its groups only with the method that does."""

    def read(fields: Fields, draft: Draft) -> None:
        n, top = fields.integer("n_group"), fields.integer("topk_group")
        methods = {"greedy": False, "group_limited_greedy": True}
        if fields.choice(methods, "topk_method"):
            if n is None or top is None:
                raise fields.error("n_group", "required field is missing, as topk_group may be")
            draft.put("E.groups", {"n": n, "top": top})

    def write(architecture: Architecture, config: Config) -> None:
        groups = look(architecture, "E.groups") if "E" in architecture.blocks else None
        config["topk_method"] = "group_limited_greedy" if groups else "greedy"
        if groups:
            config |= {"n_group": groups.n, "topk_group": groups.top}

    return Pair(read=read, write=write)


DEEPSEEK_V2 = family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    outer(d_model=4096, vocab_size=102_400, eps=1e-6),
    mla("L", heads=32, q_lora_rank=1536),
    rotary("L", interleaved=True),
    dense(11008),
    deepseek_experts(n_experts=64, top_k=None, d_expert=1407, n_shared=2, scale=1.0),
    fact("E.norm_topk", "norm_topk_prob", False),
    v2_groups(),
    activation("- E"),
    layers(32, every("L"), dense_first("first_k_dense_replace", 0)),
    only(scoring_func="softmax"),
    whole_heads("L"),
)

DEEPSEEK_V3 = family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    outer(d_model=7168, vocab_size=129_280, eps=1e-6),
    mla("L", heads=128, q_lora_rank=1536),
    rotary("L", interleaved=True),
    fact("L.rope.interleaved", "rope_interleave", True),
    dense(18432),
    deepseek_experts(n_experts=256, top_k=8, d_expert=2048, n_shared=1, scale=2.5),
    fact("E.norm_topk", "norm_topk_prob", True),
    expert_groups(8, 4),
    always("E.router", "sigmoid_bias"),
    activation("- E"),
    layers(61, every("L"), dense_first("first_k_dense_replace", 3)),
    mtp("num_nextn_predict_layers|num_mtp_layers", "LE", 1),
    only(scoring_func="sigmoid", topk_method="noaux_tc"),
)

DEEPSEEK_V32 = family(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    outer(d_model=7168, vocab_size=129_280, eps=1e-6),
    mla("S", heads=128, q_lora_rank=1536),
    rotary("S", interleaved=True),
    indexer("S", heads=64, head_dim=128, top_k=2048),
    dense(18432),
    deepseek_experts(n_experts=256, top_k=8, d_expert=2048, n_shared=1, scale=2.5),
    fact("E.norm_topk", "norm_topk_prob", True),
    expert_groups(8, 4),
    always("E.router", "sigmoid_bias"),
    activation("- E"),
    layers(
        61,
        named("layer_types", {"indexed_attention": "S"}, lambda _, number: ["S"] * number),
        dense_first("first_k_dense_replace", 3),
    ),
    mtp("num_nextn_predict_layers", "SE"),
    only(scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=True),
)

_V4_MIXERS = {
    "sliding_attention": "W",
    "compressed_sparse_attention": "Z1",
    "heavily_compressed_attention": "Z2",
}


_V4_RATIOS = {0: "W", 4: "Z1", 128: "Z2"}


def v4_mixers() -> Column:
    """DeepSeek-V4's kinds, or its older ratios, which may go on for the MTP module."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        ratios = fields.integers("compress_ratios")
        if ratios is None:
            return ["Z2" if i < 2 or i % 2 == 0 else "Z1" for i in range(number)]
        if len(ratios) < number or not set(ratios) <= set(_V4_RATIOS):
            raise fields.error(
                "compress_ratios",
                f"must have num_hidden_layers={number} entries of 0, 4 or 128, got {len(ratios)}",
            )
        return [_V4_RATIOS[ratio] for ratio in ratios[:number]]

    return named("layer_types", _V4_MIXERS, absent)


def v4_experts() -> Column:
    """The first layers of DeepSeek-V4 choose their experts by the token's id."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        hashed = min(number, first(fields.integer("num_hash_layers", least=0), 3))
        return ["E1"] * hashed + ["E"] * (number - hashed)

    return named("mlp_layer_types", {"moe": "E", "hash_moe": "E1"}, absent)


def v4_compression() -> Part:
    """How many tokens the two compressed kinds pool into one entry."""
    csa, hca = "compressed_sparse_attention", "heavily_compressed_attention"

    def read(fields: Fields, draft: Draft) -> None:
        rates = fields.part("compress_rates")
        of_csa, of_hca = (rates and rates.integer(name) for name in (csa, hca))
        draft.put("Z1.compress", first(of_csa, fields.integer("compress_rate_csa"), 4))
        draft.put("Z2.compress", first(of_hca, fields.integer("compress_rate_hca"), 128))

    def write(architecture: Architecture, config: Config) -> None:
        config["compress_rates"] = {
            csa: look(architecture, "Z1.compress") or 4,
            hca: look(architecture, "Z2.compress") or 128,
        }

    return Pair(read=read, write=write)


_V4_MAIN = rotary("W", label="main", partial=0.125, interleaved=True, old_scaling=None)


_V4_COMPRESS = rotary(
    "Z1 Z2",
    theta=160_000.0,
    label="compress",
    partial=0.125,
    interleaved=True,
    old_theta="compress_rope_theta",
)


def v4_positions() -> Part:
    """DeepSeek-V4: plain positions in the window, stretched ones where entries are pooled.

    A flat rope_parameters is that of the pooled ones, but for its theta.
    """

    def read(fields: Fields, draft: Draft) -> None:
        part = fields.part("rope_parameters")
        nested = part is not None and {"main", "compress"} <= set(part.data)
        flat = fields.part("rope_scaling") or (None if nested else part)
        rotated = fields.integer("qk_rope_head_dim")
        for rope in (_V4_MAIN, _V4_COMPRESS):
            data = rope.rope(fields, draft)
            if not nested and rotated is not None:
                data["partial"] = rotated / draft.get("W.head_dim")
            if flat is not None:
                flat.pass_over("rope_theta", "partial_rotary_factor")
                data["scaling"] = read_scaling(flat, fields) if rope is _V4_COMPRESS else None
            for symbol in rope.symbols:
                draft.put(f"{symbol}.rope", data)
        for stretched in (flat, part and nested and part.part("compress")):
            if stretched:
                stretched.expect("attention_factor", 1.0)
        fields.pass_over("qk_nope_head_dim")

    def write(architecture: Architecture, config: Config) -> None:
        written: dict[str, Any] = {}
        for rope, theirs in ((_V4_MAIN, "rope_theta"), (_V4_COMPRESS, "compress_rope_theta")):
            rope.write(architecture, config)
            default = {"rope_type": "default", "rope_theta": rope.theta}
            said = config.pop("rope_parameters", {}).get(rope.label, default)
            if said["rope_type"] == "yarn":
                said["attention_factor"] = 1.0
            written[str(rope.label)] = said
            config[theirs] = said["rope_theta"]
        config["rope_parameters"] = written

    return Pair(read=read, write=write)


DEEPSEEK_V4 = family(
    "deepseek_v4",
    "DeepseekV4ForCausalLM",
    outer(d_model=4096, vocab_size=129_280, eps=1e-6),
    kinds(compressed="W Z1 Z2"),
    fact("W Z1 Z2.heads", "num_attention_heads", 64),
    fact("W Z1 Z2.head_dim", "head_dim", 512),
    fact("W Z1 Z2.q_lora_rank", "q_lora_rank", 1024),
    fact("W Z1 Z2.o_groups", "o_groups", 8),
    fact("W Z1 Z2.o_lora_rank", "o_lora_rank", 1024),
    fact("W Z1 Z2.window", "sliding_window", 128),
    always("W Z1 Z2.sinks", True),
    v4_compression(),
    always("Z1.overlap", True),
    indexer("Z1", heads=64, head_dim=128, top_k=512),
    v4_positions(),
    experts(
        n_experts=256,
        top_k=6,
        d_expert=2048,
        n="n_routed_experts|num_local_experts",
        symbols="E E1",
    ),
    always("E E1.n_shared", 1),
    choice(
        "E.router",
        "scoring_func",
        "sqrtsoftplus",
        {"sqrtsoftplus": "sqrtsoftplus_bias", "sigmoid": "sigmoid_bias"},
    ),
    always("E1.router", "hash"),
    fact("E E1.scale", "routed_scaling_factor", 1.5),
    fact("E E1.limit", "swiglu_limit", 10.0),
    activation("E E1"),
    fact("hyper_connections.streams", "hc_mult", 4),
    fact("hyper_connections.sinkhorn_iters", "hc_sinkhorn_iters", 20),
    layers(43, v4_mixers(), v4_experts()),
    mtp("num_nextn_predict_layers", "WE", 1),
    only(n_shared_experts=1, norm_topk_prob=True, hc_eps=1e-6, num_key_value_heads=1),
    only(attention_bias=False, mlp_bias=False, topk_method="noaux_tc", rope_interleave=True),
    no_effect("first_k_dense_replace", "intermediate_size"),
)

KIMI_LINEAR = family("kimi_linear", "KimiLinearForCausalLM", kimi(published=False))

KIMI_K3 = family(
    "kimi_k3", "KimiK3ForConditionalGeneration", kimi(published=True), text_type="kimi_linear"
)

FAMILIES = (DEEPSEEK_V2, DEEPSEEK_V3, DEEPSEEK_V32, DEEPSEEK_V4, KIMI_LINEAR, KIMI_K3)
