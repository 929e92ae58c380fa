"""DeepSeek V2 to V4."""

from collections.abc import Iterable
from typing import Any

from ...architecture import Architecture
from ..attention import heads_divide_d_model, indexer, mla
from ..family import family
from ..feed_forward import activation, deepseek_experts, dense_ffn, routed_experts, sigmoid_routing
from ..json_fields import Fields, as_json, coalesce
from ..layers import every_layer, layer_types, layers, leading_dense
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    choice,
    constant,
    expected,
    field,
    get_field,
    ignored,
)
from ..model import mtp, top_level
from ..rope import read_scaling, rope


def _v2_groups() -> FieldMapping:
    """DeepSeek-V2's group-limited routing, used only with the `topk_method` of that name."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        n, top = fields.integer("n_group"), fields.integer("topk_group")
        if fields.choice({"greedy": False, "group_limited_greedy": True}, "topk_method"):
            if n is None or top is None:
                raise fields.error(
                    "n_group" if n is None else "topk_group",
                    "required field is missing, as topk_method is group_limited_greedy",
                )
            draft.set("E.groups", {"n": n, "top": top})

    def write(architecture: Architecture, config: Config) -> None:
        groups = get_field(architecture, "E.groups") if "E" in architecture.blocks else None
        config["topk_method"] = "group_limited_greedy" if groups else "greedy"
        if groups:
            config |= {"n_group": groups.n, "topk_group": groups.top}

    return CustomMapping(read=read, write=write)


DEEPSEEK_V2 = family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    top_level(d_model=4096, vocab_size=102_400, eps=1e-6),
    mla("L", heads=32, q_lora_rank=1536),
    rope("L", interleaved=True),
    dense_ffn(11008),
    deepseek_experts(n_experts=64, top_k=None, d_expert=1407, n_shared=2, scale=1.0),
    field("E.norm_topk", "norm_topk_prob", False),
    _v2_groups(),
    activation("- E"),
    layers(32, every_layer("L"), leading_dense("first_k_dense_replace", 0)),
    expected(scoring_func="softmax"),
    heads_divide_d_model("L"),
)

DEEPSEEK_V3 = family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    top_level(d_model=7168, vocab_size=129_280, eps=1e-6),
    mla("L", heads=128, q_lora_rank=1536),
    rope("L", interleaved=True),
    field("L.rope.interleaved", "rope_interleave", True),
    dense_ffn(18432),
    deepseek_experts(n_experts=256, top_k=8, d_expert=2048, n_shared=1, scale=2.5),
    field("E.norm_topk", "norm_topk_prob", True),
    sigmoid_routing(8, 4),
    activation("- E"),
    layers(61, every_layer("L"), leading_dense("first_k_dense_replace", 3)),
    mtp("num_nextn_predict_layers|num_mtp_layers", "LE", 1),
)

DEEPSEEK_V32 = family(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    top_level(d_model=7168, vocab_size=129_280, eps=1e-6),
    mla("S", heads=128, q_lora_rank=1536),
    rope("S", interleaved=True),
    indexer("S", heads=64, head_dim=128, top_k=2048),
    dense_ffn(18432),
    deepseek_experts(n_experts=256, top_k=8, d_expert=2048, n_shared=1, scale=2.5),
    field("E.norm_topk", "norm_topk_prob", True),
    sigmoid_routing(8, 4),
    activation("- E"),
    layers(
        61,
        layer_types("layer_types", {"indexed_attention": "S"}, lambda _, number: ["S"] * number),
        leading_dense("first_k_dense_replace", 3),
    ),
    mtp("num_nextn_predict_layers", "SE"),
    expected(rope_interleave=True),
)

_V4_SYMBOL_OF_RATIO = {0: "W", 4: "Z1", 128: "Z2"}


def _v4_mixers_by_ratio(fields: Fields, number: int) -> Iterable[str]:
    """The kinds of attention by `compress_ratios`, which may go on for the MTP module."""
    ratios = fields.integers("compress_ratios")
    if ratios is None:
        return ["Z2" if i < 2 or i % 2 == 0 else "Z1" for i in range(number)]
    if len(ratios) < number or not set(ratios) <= set(_V4_SYMBOL_OF_RATIO):
        raise fields.error(
            "compress_ratios",
            f"must have an entry of 0, 4 or 128 per layer, num_hidden_layers={number}, "
            f"got {as_json(ratios)}",
        )
    return [_V4_SYMBOL_OF_RATIO[ratio] for ratio in ratios[:number]]


def _v4_leading_hash(fields: Fields, number: int) -> Iterable[str]:
    """Experts chosen by token id in the first `num_hash_layers`, by a router in the others."""
    hashed = min(number, coalesce(fields.integer("num_hash_layers", least=0), 3))
    return ["E1"] * hashed + ["E"] * (number - hashed)


def _v4_compression() -> FieldMapping:
    """How many tokens each of the two compressed kinds of attention pools into one entry."""
    csa, hca = "compressed_sparse_attention", "heavily_compressed_attention"

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        rates = fields.section("compress_rates")
        csa_rate, hca_rate = (rates and rates.integer(name) for name in (csa, hca))
        draft.set("Z1.compress", coalesce(csa_rate, fields.integer("compress_rate_csa"), 4))
        draft.set("Z2.compress", coalesce(hca_rate, fields.integer("compress_rate_hca"), 128))

    def write(architecture: Architecture, config: Config) -> None:
        config["compress_rates"] = {
            csa: get_field(architecture, "Z1.compress") or 4,
            hca: get_field(architecture, "Z2.compress") or 128,
        }

    return CustomMapping(read=read, write=write)


_V4_WINDOW_ROPE = rope("W", key="main", partial=0.125, interleaved=True, old_scaling=None)
_V4_COMPRESSED_ROPE = rope(
    "Z1 Z2",
    theta=160_000.0,
    key="compress",
    partial=0.125,
    interleaved=True,
    old_theta="compress_rope_theta",
)


def _v4_rope() -> FieldMapping:
    """DeepSeek-V4's two RoPEs: plain in window attention, scaled in compressed attention.

    rope_parameters has an object for each, `main` and `compress`. A flat rope_parameters, or
    rope_scaling, is that of compressed attention, with the thetas in fields of their own.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        section = fields.section("rope_parameters")
        nested = section is not None and {"main", "compress"} <= set(section.data)
        flat = fields.section("rope_scaling") or (None if nested else section)
        rotated = fields.integer("qk_rope_head_dim")
        for mapping in (_V4_WINDOW_ROPE, _V4_COMPRESSED_ROPE):
            data = mapping.read_rope(fields, draft)
            if not nested and rotated is not None:
                data["partial"] = rotated / draft.get("W.head_dim")
            if flat is not None:
                flat.ignore("rope_theta", "partial_rotary_factor")
                compressed = mapping is _V4_COMPRESSED_ROPE
                data["scaling"] = read_scaling(flat, fields) if compressed else None
            for symbol in mapping.symbols:
                draft.set(f"{symbol}.rope", data)
        for scaled in (flat, section and nested and section.section("compress")):
            if scaled:
                scaled.expect("attention_factor", 1.0)
        fields.ignore("qk_nope_head_dim")

    def write(architecture: Architecture, config: Config) -> None:
        written: dict[str, Any] = {}
        for mapping, theta_name in (
            (_V4_WINDOW_ROPE, "rope_theta"),
            (_V4_COMPRESSED_ROPE, "compress_rope_theta"),
        ):
            mapping.write(architecture, config)
            default = {"rope_type": "default", "rope_theta": mapping.theta}
            parameters = config.pop("rope_parameters", {}).get(mapping.key, default)
            if parameters["rope_type"] == "yarn":
                parameters["attention_factor"] = 1.0
            written[str(mapping.key)] = parameters
            config[theta_name] = parameters["rope_theta"]
        config["rope_parameters"] = written

    return CustomMapping(read=read, write=write)


DEEPSEEK_V4 = family(
    "deepseek_v4",
    "DeepseekV4ForCausalLM",
    top_level(d_model=4096, vocab_size=129_280, eps=1e-6),
    block_kinds(compressed="W Z1 Z2"),
    field("W Z1 Z2.heads", "num_attention_heads", 64),
    field("W Z1 Z2.head_dim", "head_dim", 512),
    field("W Z1 Z2.q_lora_rank", "q_lora_rank", 1024),
    field("W Z1 Z2.o_groups", "o_groups", 8),
    field("W Z1 Z2.o_lora_rank", "o_lora_rank", 1024),
    field("W Z1 Z2.window", "sliding_window", 128),
    constant("W Z1 Z2.sinks", True),
    _v4_compression(),
    constant("Z1.overlap", True),
    indexer("Z1", heads=64, head_dim=128, top_k=512),
    _v4_rope(),
    routed_experts(
        n_experts=256,
        top_k=6,
        d_expert=2048,
        n_name="n_routed_experts|num_local_experts",
        symbols="E E1",
    ),
    constant("E E1.n_shared", 1),
    choice(
        "E.router",
        "scoring_func",
        "sqrtsoftplus",
        {"sqrtsoftplus": "sqrtsoftplus_bias", "sigmoid": "sigmoid_bias"},
    ),
    constant("E1.router", "hash"),
    field("E E1.scale", "routed_scaling_factor", 1.5),
    field("E E1.limit", "swiglu_limit", 10.0),
    activation("E E1"),
    field("hyper_connections.streams", "hc_mult", 4),
    field("hyper_connections.sinkhorn_iters", "hc_sinkhorn_iters", 20),
    layers(
        43,
        layer_types(
            "layer_types",
            {
                "sliding_attention": "W",
                "compressed_sparse_attention": "Z1",
                "heavily_compressed_attention": "Z2",
            },
            _v4_mixers_by_ratio,
        ),
        layer_types("mlp_layer_types", {"moe": "E", "hash_moe": "E1"}, _v4_leading_hash),
    ),
    mtp("num_nextn_predict_layers", "WE", 1),
    expected(n_shared_experts=1, norm_topk_prob=True, hc_eps=1e-6, num_key_value_heads=1),
    expected(attention_bias=False, mlp_bias=False, topk_method="noaux_tc", rope_interleave=True),
    ignored("first_k_dense_replace", "intermediate_size"),
)
