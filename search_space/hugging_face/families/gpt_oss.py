"""gpt-oss."""

from ..attention import attention_bias, gqa
from ..family import family
from ..feed_forward import routed_experts
from ..layers import ATTENTION, every_layer, every_nth, layer_types, layers
from ..mapping import constant, expected, field
from ..model import top_level
from ..rope import rope

GPT_OSS = family(
    "gpt_oss",
    "GptOssForCausalLM",
    top_level(d_model=2880, vocab_size=201_088, eps=1e-5),
    gqa("* W", heads=64, kv_heads=8, head_dim=64),
    attention_bias("* W", True),
    constant("* W.sinks", True),
    field("W.window", "sliding_window", 128),
    rope(
        "* W",
        theta=150_000.0,
        scaling={"type": "yarn", "factor": 32.0, "original_context": 4096, "truncate": False},
    ),
    routed_experts(n_experts=128, top_k=4, d_expert=2880, width_name="intermediate_size"),
    constant("E.router_bias", True),
    constant("E.expert_bias", True),
    constant("E.activation", "swiglu_oai"),
    expected(hidden_act="silu", swiglu_alpha=1.702, swiglu_limit=7.0),
    expected(experts_per_token=4, initial_context_length=4096),
    layers(36, layer_types("layer_types", ATTENTION, every_nth(("W", "*"), 2)), every_layer("E")),
)
