"""RWKV-7."""

from ...architecture import Architecture
from ..family import family
from ..json_fields import Fields, coalesce
from ..layers import every_layer, layers
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
)
from ..model import top_level


def _widths() -> FieldMapping:
    """Heads and the channel mixer's width, by default from d_model.

    The width is `hidden_ratio` times d_model, rounded up to 32. Raises InputError unless the heads
    fill d_model.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        d_model, head_dim = draft.get("d_model"), coalesce(fields.integer("head_dim"), 64)
        heads = coalesce(fields.integer("num_heads"), d_model // head_dim)
        draft.set("R.head_dim", head_dim)
        draft.set("R.heads", heads)
        ratio = coalesce(fields.number("hidden_ratio"), 4.0)
        by_ratio = 32 * ((int(d_model * ratio) + 31) // 32)
        draft.set("r.width", coalesce(fields.integer("intermediate_size"), by_ratio))
        if heads * head_dim != d_model:
            raise fields.error(
                "head_dim", f"times {heads} heads must be hidden_size={d_model}, got {head_dim}"
            )

    def write(architecture: Architecture, config: Config) -> None:
        config["head_dim"] = get_field(architecture, "R.head_dim")
        config["intermediate_size"] = get_field(architecture, "r.width")

    return CustomMapping(read=read, write=write)


RWKV7 = family(
    "rwkv7",
    "RWKV7ForCausalLM",
    top_level(d_model=2048, vocab_size=32000, eps=1e-5, eps_name="norm_eps"),
    constant("norm.type", "layer"),
    constant("embedding_norm", True),
    block_kinds(rwkv7="R", rwkv7_cmix="r"),
    _widths(),
    field("R.decay_rank", "decay_low_rank_dim", 64),
    field("R.a_rank", "a_low_rank_dim", 64),
    field("R.v_rank", "v_low_rank_dim", 16),
    field("R.gate_rank", "gate_low_rank_dim", 128),
    layers(24, every_layer("R"), every_layer("r")),
    expected(norm_bias=True, norm_first=True, hidden_act="sqrelu"),
)
