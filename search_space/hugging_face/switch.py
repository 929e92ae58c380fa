"""Switch Transformers, an encoder and a decoder; read only."""

from ..architecture import Architecture
from ..document import InputError
from .family import family
from .json_fields import Fields, first
from .layers import MAX_LAYERS
from .parts import UNGATED, Config, Draft, Pair, Part, always, fact, kinds, no_effect, only


def switch_activation() -> Part:
    def read(fields: Fields, draft: Draft) -> None:
        draft.put("- E.activation", fields.choice(UNGATED, "dense_act_fn") or "relu")

    return Pair(read=read, write=lambda *_: None)


def switch_stacks() -> Part:
    """Switch Transformers' encoder and decoder: experts in each so-many-th layer (import only)."""

    def stack(fields: Fields, number: int, sparse: int, mixers: str) -> str:
        step = number // sparse if sparse else number
        if not step:
            raise fields.error(
                "num_sparse_encoder_layers", f"may be at most {number}, got {sparse}"
            )
        return "".join(mixers + ("E" if i % step == 1 or step == 1 else "-") for i in range(number))

    def read(fields: Fields, draft: Draft) -> None:
        number = first(fields.integer("num_layers"), 12)
        decoder = first(fields.integer("num_decoder_layers"), number)
        for name, value in (("num_layers", number), ("num_decoder_layers", decoder)):
            if value > MAX_LAYERS:
                raise fields.error(name, f"may be at most {MAX_LAYERS}, got {value}")
        sparse = first(fields.integer("num_sparse_encoder_layers", least=0), 3)
        decoder_sparse = first(fields.integer("num_sparse_decoder_layers", least=0), 3)
        draft.put("encoder", {"pattern": stack(fields, number, sparse, "*")})
        draft.symbols = tuple(stack(fields, decoder, decoder_sparse, "*&"))

    def write(architecture: Architecture, config: Config) -> None:
        raise InputError("the family is read, not written")

    return Pair(read=read, write=write)


SWITCH_TRANSFORMERS = family(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    fact("d_model", "d_model|hidden_size", 768),
    fact("vocab_size", "vocab_size", 32128),
    fact("tied_embeddings", "tie_word_embeddings", True),
    fact("norm.eps", "layer_norm_epsilon", 1e-6),
    kinds(attn="* &", ffn="-", moe="E"),
    fact("* &.heads", "num_heads|num_attention_heads", 12),
    fact("* &.kv_heads", "num_heads|num_attention_heads", 12),
    fact("* &.head_dim", "d_kv", 64),
    always("* &.rope", None),
    fact("*.relative_buckets", "relative_attention_num_buckets", 32),
    always("&.cross", True),
    fact("-.width", "d_ff", 2048),
    fact("E.d_expert", "d_ff", 2048),
    fact("E.n_experts", "num_experts", 8),
    always("E.top_k", 1),
    always("E.norm_topk", False),
    fact("E.router_bias", "router_bias", False),
    switch_activation(),
    switch_stacks(),
    no_effect("num_hidden_layers", "encoder_sparse_step", "decoder_sparse_step"),
    only(feed_forward_proj="relu", is_gated_act=False),
    only(relative_attention_max_distance=128, add_cross_attention=False),
)


FAMILIES = (SWITCH_TRANSFORMERS,)
