"""Switch Transformers, an encoder and a decoder; read, not written."""

from ...architecture import Architecture
from ...document import InputError
from ..family import family
from ..feed_forward import UNGATED
from ..json_fields import Fields, coalesce
from ..layers import num_layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    constant,
    expected,
    field,
    ignored,
    read_only,
)


def _activation(fields: Fields, draft: ArchitectureDraft) -> None:
    draft.set("- E.activation", fields.choice(UNGATED, "dense_act_fn") or "relu")


def _stacks() -> FieldMapping:
    """The encoder and the decoder, each with its number of sparse layers.

    Writing raises InputError.
    """

    def stack(fields: Fields, number: int, name: str, mixers: str) -> str:
        sparse = coalesce(fields.integer(name, least=0), 3)
        step = number // sparse if sparse else number
        if not step:
            raise fields.error(name, f"must be at most the {number} layers, got {sparse}")
        return "".join(mixers + ("E" if i % step == 1 or step == 1 else "-") for i in range(number))

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        number = num_layers(fields, "num_layers", 12)
        decoder = num_layers(fields, "num_decoder_layers", number)
        encoder_blocks = stack(fields, number, "num_sparse_encoder_layers", "*")
        draft.set("encoder", {"pattern": encoder_blocks})
        draft.symbols = tuple(stack(fields, decoder, "num_sparse_decoder_layers", "*&"))

    def write(architecture: Architecture, config: Config) -> None:
        raise InputError("this family can be read, not written")

    return CustomMapping(read=read, write=write)


SWITCH_TRANSFORMERS = family(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    field("d_model", "d_model|hidden_size", 768),
    field("vocab_size", "vocab_size", 32128),
    field("tied_embeddings", "tie_word_embeddings", True),
    field("norm.eps", "layer_norm_epsilon", 1e-6),
    block_kinds(attn="* &", ffn="-", moe="E"),
    field("* &.heads", "num_heads|num_attention_heads", 12),
    field("* &.kv_heads", "num_heads|num_attention_heads", 12),
    field("* &.head_dim", "d_kv", 64),
    constant("* &.rope", None),
    field("*.relative_buckets", "relative_attention_num_buckets", 32),
    constant("&.cross", True),
    field("-.width", "d_ff", 2048),
    field("E.d_expert", "d_ff", 2048),
    field("E.n_experts", "num_experts", 8),
    constant("E.top_k", 1),
    constant("E.norm_topk", False),
    field("E.router_bias", "router_bias", False),
    read_only(_activation),
    _stacks(),
    ignored("num_hidden_layers", "encoder_sparse_step", "decoder_sparse_step"),
    expected(feed_forward_proj="relu", is_gated_act=False),
    expected(relative_attention_max_distance=128, add_cross_attention=False),
)
