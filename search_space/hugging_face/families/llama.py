"""Llama 2 to 4."""

from ...architecture import Architecture
from ..attention import attention_bias, gqa, heads_divide_d_model, qk_norm
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts
from ..json_fields import Fields, coalesce
from ..layers import LayerBlocks, every_layer, layer_types, layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    constant,
    field,
    get_field,
)
from ..model import top_level
from ..rope import rope

LLAMA = family(
    "llama",
    "LlamaForCausalLM",
    top_level(d_model=4096, vocab_size=32000, eps=1e-6),
    gqa("*", heads=32),
    attention_bias("*"),
    rope("*"),
    dense_ffn(11008),
    activation("-"),
    field("-.bias", "mlp_bias", False),
    layers(32, every_layer("*"), every_layer("-")),
    heads_divide_d_model("*"),
)


def _chunked_or_full() -> LayerBlocks:
    """Chunked attention with RoPE, or full attention without.

    Each layer by `layer_types`, by the ones and zeros of `no_rope_layers`, or full attention in
    every n-th; the two lists must agree, else InputError.
    """

    def by_rope(fields: Fields, number: int) -> list[str]:
        step = coalesce(fields.integer("no_rope_layer_interval"), 4)
        given = fields.integers("no_rope_layers")
        if given and len(given) < number:
            raise fields.error(
                "no_rope_layers", f"must have num_hidden_layers={number} entries, got {len(given)}"
            )
        if given:
            return ["C" if uses_rope else "*" for uses_rope in given[:number]]
        return ["*" if (i + 1) % step == 0 else "C" for i in range(number)]

    listed = layer_types("layer_types", {"chunked_attention": "C", "full_attention": "*"}, by_rope)

    def read(fields: Fields, number: int) -> list[str]:
        symbols = listed.read(fields, number)
        if symbols != by_rope(fields, number):
            raise fields.error(
                "layer_types", "contradicts no_rope_layers: chunked_attention layers have RoPE"
            )
        return symbols

    def write(symbols: list[str]) -> Config:
        uses_rope = [int(symbol == "C") for symbol in symbols]
        return listed.write(symbols) | {"no_rope_layers": uses_rope}

    return LayerBlocks(read=read, write=write)


def _chunk() -> FieldMapping:
    """`attention_chunk_size`; null, RoPE with full attention, raises InputError."""
    name = "attention_chunk_size"

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        if fields.is_null(name):
            raise fields.error(name, "must be an integer: layers with RoPE are chunked, got null")
        draft.set("C.chunk", coalesce(fields.integer(name), 8192))

    def write(architecture: Architecture, config: Config) -> None:
        config[name] = get_field(architecture, "C.chunk") or 8192

    return CustomMapping(read=read, write=write)


def _temperature() -> FieldMapping:
    """Queries scaled by their position in the layers without RoPE, where switched on."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        scale = coalesce(fields.number("attn_scale"), 0.1)
        floor = coalesce(fields.integer("floor_scale"), 8192)
        if coalesce(fields.flag("attn_temperature_tuning"), True):
            draft.set("*.temperature", {"scale": scale, "floor": floor})

    def write(architecture: Architecture, config: Config) -> None:
        temperature = get_field(architecture, "*.temperature")
        config["attn_temperature_tuning"] = temperature is not None
        if temperature:
            config |= {"attn_scale": temperature.scale, "floor_scale": temperature.floor}

    return CustomMapping(read=read, write=write)


def _sparse_layers() -> LayerBlocks:
    """Experts in the layers that `moe_layers` lists, or in every n-th."""

    def read(fields: Fields, number: int) -> list[str]:
        step = coalesce(fields.integer("interleave_moe_layer_step"), 1)
        given = fields.integers("moe_layers")
        sparse = set(range(step - 1, number, step)) if given is None else set(given)
        return ["E" if i in sparse else "-" for i in range(number)]

    def write(symbols: list[str]) -> Config:
        return {"moe_layers": [i for i, symbol in enumerate(symbols) if symbol == "E"]}

    return LayerBlocks(read=read, write=write)


LLAMA4_TEXT = family(
    "llama4_text",
    "Llama4ForCausalLM",
    top_level(d_model=5120, vocab_size=202_048, eps=1e-5),
    gqa("C *", heads=40, kv_heads=8, head_dim=128),
    attention_bias("C *"),
    _chunk(),
    rope("C", theta=500_000.0, interleaved=True),
    constant("*.rope", None),
    _temperature(),
    qk_norm("C", "l2", True),
    dense_ffn(16384, name="intermediate_size_mlp"),
    routed_experts(n_experts=16, top_k=1, d_expert=8192, width_name="intermediate_size"),
    constant("E.n_shared", 1),
    constant("E.router", "sigmoid"),
    constant("E.norm_topk", False),
    constant("E.scale_input", True),
    activation("- E"),
    layers(48, _chunked_or_full(), _sparse_layers()),
)
