"""LFM2."""

from collections.abc import Iterable

from ...architecture import Architecture
from ..attention import gqa
from ..family import family
from ..json_fields import Fields, coalesce
from ..layers import every_layer, layer_types, layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    constant,
    expected,
    field,
    get_field,
    ignored,
)
from ..model import top_level
from ..rope import rope


def _attention_indices(fields: Fields, number: int) -> Iterable[str]:
    """Attention in the layers of `full_attn_idxs`, in all where it is absent."""
    indices = fields.integers("full_attn_idxs")
    return ["*" if indices is None or i in indices else "Y" for i in range(number)]


def _ffn_width() -> FieldMapping:
    """The width of the feed-forward.

    Unless `block_auto_adjust_ff_dim` is false, two thirds of the field, times
    `block_ffn_dim_multiplier`, rounded up to `block_multiple_of`. It is written without adjustment.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        width = coalesce(fields.integer("block_ff_dim"), fields.integer("intermediate_size"), 12288)
        adjusted = coalesce(fields.flag("block_auto_adjust_ff_dim"), True)
        times = coalesce(fields.number("block_ffn_dim_multiplier"), 1.0)
        multiple = coalesce(fields.integer("block_multiple_of"), 256)
        if adjusted:
            width = int(2 * width / 3)
            if not fields.is_null("block_ffn_dim_multiplier"):
                width = multiple * -(-int(times * width) // multiple)
        draft.set("-.width", width)

    def write(architecture: Architecture, config: Config) -> None:
        config["intermediate_size"] = get_field(architecture, "-.width")
        config["block_auto_adjust_ff_dim"] = False

    return CustomMapping(read=read, write=write)


LFM2 = family(
    "lfm2",
    "Lfm2ForCausalLM",
    top_level(
        d_model=2560,
        vocab_size=65536,
        eps=1e-5,
        eps_name="norm_eps|block_norm_eps",
        tied=True,
        tied_name="tie_word_embeddings|tie_embedding",
    ),
    gqa("*", heads=32, kv_heads=8),
    constant("*.qk_norm", "head"),
    rope("*", theta=1_000_000.0),
    block_kinds(shortconv="Y", ffn="-"),
    field("Y.conv", "conv_L_cache", 3),
    _ffn_width(),
    layers(
        32,
        layer_types("layer_types", {"conv": "Y", "full_attention": "*"}, _attention_indices),
        every_layer("-"),
    ),
    expected(conv_bias=False, block_use_swiglu=True),
    ignored("block_dim", "conv_dim", "conv_dim_out", "num_heads", "full_attn_idxs"),
    ignored("block_mlp_init_scale", "block_out_init_scale", "use_pos_enc"),
    ignored("block_use_xavier_init", "conv_use_xavier_init", "use_xavier_init"),
)
