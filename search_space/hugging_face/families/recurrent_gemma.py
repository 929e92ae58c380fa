"""RecurrentGemma (Griffin)."""

from ...architecture import Architecture
from ...document import InputError
from ..family import family
from ..feed_forward import activation
from ..json_fields import Fields, as_json, coalesce
from ..layers import LayerBlocks, every_layer, layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    constant,
    derived,
    expected,
    field,
    get_field,
    ignored,
    nullable,
)
from ..model import top_level
from ..rope import rope


def _repeated_types() -> LayerBlocks:
    """`block_types`, a list that repeats over the layers; written in full."""
    symbols_of = {"recurrent": "U", "attention": "W"}

    def read(fields: Fields, number: int) -> list[str]:
        given = fields.texts("block_types", "_block_types")
        cycle = ["recurrent", "recurrent", "attention"] if given is None else given
        if not cycle or set(cycle) - set(symbols_of):
            raise fields.error(
                "block_types",
                f'must be a list of "recurrent" and "attention", got {as_json(cycle)}',
            )
        return [symbols_of[cycle[i % len(cycle)]] for i in range(number)]

    def write(symbols: list[str]) -> Config:
        types = {symbol: block_type for block_type, symbol in symbols_of.items()}
        if odd := next((symbol for symbol in symbols if symbol not in types), None):
            raise InputError(f"pattern: block_types has no name for {odd!r}; known: U, W")
        return {"block_types": [types[symbol] for symbol in symbols]}

    return LayerBlocks(read=read, write=write)


def _ffn_width() -> FieldMapping:
    """`intermediate_size`, the width of both inputs of the gate together."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        draft.set("-.width", coalesce(fields.integer("intermediate_size"), 7680) // 2)

    def write(architecture: Architecture, config: Config) -> None:
        if (width := get_field(architecture, "-.width")) is not None:
            config["intermediate_size"] = 2 * width

    return CustomMapping(read=read, write=write)


RECURRENT_GEMMA = family(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    top_level(d_model=2560, vocab_size=256_000, eps=1e-6, tied=True),
    constant("norm.zero_centered", True),
    constant("embedding_scale", "sqrt_d_model"),
    nullable("final_logit_softcap", "logits_soft_cap", 30.0),
    block_kinds(rglru="U", attn="W", ffn="-"),
    field("W.heads", "num_attention_heads", 10),
    field("W.kv_heads", "num_key_value_heads", lambda draft: draft.get("W.heads")),
    field("W.qkv_bias", "attention_bias", False),
    constant("W.o_bias", True),
    field("W.window", "attention_window_size|sliding_window", 2048),
    _ffn_width(),
    derived("W.head_dim", lambda draft: draft.get("d_model") // draft.get("W.heads"), "head_dim"),
    field("U.width", "lru_width", lambda draft: draft.get("d_model")),
    field("U.blocks", "num_attention_heads", 10),
    field("U.conv", "conv1d_width", 4),
    rope("W", partial=0.5),
    constant("-.bias", True),
    activation("-", "hidden_activation", "gelu_pytorch_tanh"),
    layers(26, _repeated_types(), every_layer("-")),
    expected(embeddings_scale_by_sqrt_dim=True),
    ignored("hidden_act", "layers_block_type", "layer_types"),
)
