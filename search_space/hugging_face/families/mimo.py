"""MiMo-V2."""

from collections.abc import Iterable
from typing import Any

from ...architecture import Architecture
from ...document import InputError
from ..attention import gqa
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts, sigmoid_routing
from ..json_fields import Fields, coalesce
from ..layers import ATTENTION, DENSE_OR_SPARSE, layer_types, layers, zeros_and_ones
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    expected,
    field,
    first_block,
)
from ..model import top_level
from ..rope import rope


def _full_attention_first_and_every_sixth(_: Fields, number: int) -> Iterable[str]:
    return ["*" if i == 0 or (i + 1) % 6 == 0 else "W" for i in range(number)]


def _windowed_attention() -> FieldMapping:
    """Sizes of the windowed layers, `swa_*`, by default from those of full attention.

    `sliding_window_size` does not count the current token, `sliding_window` does. Only the window
    is written, so writing raises InputError unless they have twice the key-value heads.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        past = fields.integer("sliding_window_size")
        window = fields.integer("sliding_window")
        draft.set("W.window", coalesce(past and past + 1, window, 129))
        fields.ignore("attention_chunk_size")
        for ours, name, default in (
            ("heads", "swa_num_attention_heads", draft.get("*.heads")),
            ("kv_heads", "swa_num_key_value_heads", 2 * draft.get("*.kv_heads")),
            ("head_dim", "swa_head_dim", draft.get("*.head_dim")),
            ("v_head_dim", "swa_v_head_dim", draft.get("*.v_head_dim")),
        ):
            draft.set(f"W.{ours}", coalesce(fields.integer(name), default))
        draft.set("W.sinks", coalesce(fields.flag("add_swa_attention_sink_bias"), True))
        draft.set("*.sinks", coalesce(fields.flag("add_full_attention_sink_bias"), False))

    def write(architecture: Architecture, config: Config) -> None:
        window: Any = first_block(architecture, ("W",))
        if window is None:
            return
        full: Any = first_block(architecture, ("*",))
        if full is not None and window.kv_heads != 2 * full.kv_heads:
            raise InputError(
                f"blocks.W.kv_heads: must be twice blocks.*.kv_heads={full.kv_heads}, "
                f"got {window.kv_heads}"
            )
        config["sliding_window"] = window.window

    return CustomMapping(read=read, write=write)


MIMO_V2_FLASH = family(
    "mimo_v2_flash",
    "MiMoV2FlashForCausalLM",
    top_level(
        d_model=4096, vocab_size=152_576, eps=1e-5, eps_name="rms_norm_eps|layernorm_epsilon"
    ),
    gqa("*", heads=64, kv_heads=4, head_dim=192),
    block_kinds(attn="W"),
    field("*.v_head_dim", "v_head_dim", 128),
    field("* W.qkv_bias", "attention_bias", False),
    field("* W.value_scale", "attention_value_scale", 0.707, null=1.0),
    _windowed_attention(),
    rope("*", theta=5_000_000.0, partial=0.334, key="full_attention"),
    rope(
        "W",
        partial=0.334,
        key="sliding_attention",
        old_theta="swa_rope_theta",
        old_scaling=None,
    ),
    dense_ffn(16384),
    routed_experts(
        n_experts=256, top_k=8, d_expert=2048, n_name="n_routed_experts|num_local_experts"
    ),
    field("E.norm_topk", "norm_topk_prob", True),
    field("E.scale", "routed_scaling_factor", 1.0),
    sigmoid_routing(1, 1),
    activation("- E"),
    layers(
        48,
        layer_types(
            "layer_types",
            ATTENTION,
            zeros_and_ones(
                "hybrid_layer_pattern", ("*", "W"), _full_attention_first_and_every_sixth
            ),
        ),
        layer_types(
            "mlp_layer_types",
            DENSE_OR_SPARSE,
            zeros_and_ones(
                "moe_layer_freq", ("-", "E"), lambda _, number: ["-", *["E"] * (number - 1)]
            ),
        ),
    ),
    expected(n_shared_experts=0),
)
