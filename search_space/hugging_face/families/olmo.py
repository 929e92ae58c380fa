"""OLMo 2, OLMo 3 and OLMo Hybrid."""

from collections.abc import Iterable

from ..attention import attention_bias, gqa
from ..family import family
from ..feed_forward import activation, dense_ffn
from ..json_fields import Fields
from ..layers import ATTENTION, every_layer, every_nth, layer_types, layers
from ..mapping import block_kinds, constant, field
from ..model import top_level
from ..recurrent import DELTA_NET_OR_ATTENTION
from ..rope import OptionalRope, rope

OLMO2 = family(
    "olmo2",
    "Olmo2ForCausalLM",
    top_level(d_model=4096, vocab_size=50304, eps=1e-5),
    constant("norm.placement", "post"),
    gqa("*", heads=32),
    attention_bias("*"),
    constant("*.qk_norm", "full"),
    rope("*"),
    dense_ffn(11008),
    activation("-"),
    layers(32, every_layer("*"), every_layer("-")),
)

OLMO3 = family(
    "olmo3",
    "Olmo3ForCausalLM",
    top_level(d_model=4096, vocab_size=50304, eps=1e-5),
    constant("norm.placement", "post"),
    gqa("* W", heads=32),
    attention_bias("* W"),
    constant("* W.qk_norm", "full"),
    field("W.window", "sliding_window", 4096),
    rope("*", theta=500_000.0, key="full_attention"),
    rope("W", theta=500_000.0, key="sliding_attention", old_scaling=None),
    dense_ffn(11008),
    activation("-"),
    layers(32, layer_types("layer_types", ATTENTION, every_nth(("W", "*"), 4)), every_layer("-")),
)


def _has_rope(fields: Fields) -> bool:
    """False where rope_theta is null, in either spelling."""
    section = fields.section("rope_parameters")
    return not fields.is_null("rope_theta") and not (section and section.is_null("rope_theta"))


def _full_attention_every_fourth(_: Fields, number: int) -> Iterable[str]:
    """Attention in every fourth layer; in the last one if there are fewer than four."""
    symbols = ["*" if i % 4 == 3 else "G" for i in range(number)]
    return symbols if "*" in symbols else [*symbols[:-1], "*"]


OLMO_HYBRID = family(
    "olmo_hybrid",
    "OlmoHybridForCausalLM",
    top_level(d_model=3840, vocab_size=100_352, eps=1e-6),
    constant("norm.of_mixer", {"*": "post"}),
    gqa("*", heads=30),
    attention_bias("*"),
    constant("*.qk_norm", "full"),
    OptionalRope(
        rope=rope("*"),
        enabled=_has_rope,
        write_enabled=lambda on: (
            {} if on else {"rope_parameters": {"rope_type": "default", "rope_theta": None}}
        ),
    ),
    block_kinds(gdn="G"),
    field("G.k_heads", "linear_num_key_heads", lambda draft: draft.get("*.heads")),
    field("G.v_heads", "linear_num_value_heads", lambda draft: draft.get("*.heads")),
    field(
        "G.k_head_dim",
        "linear_key_head_dim",
        lambda draft: 3 * draft.get("d_model") // (4 * draft.get("G.k_heads")),
    ),
    field("G.v_head_dim", "linear_value_head_dim", lambda draft: 2 * draft.get("G.k_head_dim")),
    field("G.conv", "linear_conv_kernel_dim", 4),
    field("G.negative_eigenvalues", "linear_allow_neg_eigval", True),
    dense_ffn(11008),
    activation("-"),
    layers(
        32,
        layer_types("layer_types", DELTA_NET_OR_ATTENTION, _full_attention_every_fourth),
        every_layer("-"),
    ),
)
