"""Phi-3.5-MoE."""

from ..attention import attention_bias, gqa
from ..family import family
from ..feed_forward import activation, routed_experts
from ..layers import every_layer, layers, shared_window, windowed_or_full
from ..mapping import constant, field
from ..model import top_level
from ..rope import rope

PHIMOE = family(
    "phimoe",
    "PhimoeForCausalLM",
    top_level(d_model=4096, vocab_size=32064, eps=1e-5),
    constant("norm.type", "layer"),
    field("lm_head_bias", "lm_head_bias", False),
    gqa("* W", heads=32, kv_heads=8),
    attention_bias("* W"),
    shared_window(None),
    rope("* W", theta=1_000_000.0),
    routed_experts(n_experts=16, top_k=2, d_expert=6400, width_name="intermediate_size"),
    constant("E.router", "sparsemixer"),
    constant("E.norm_topk", False),
    activation("E"),
    layers(32, windowed_or_full(None), every_layer("E")),
)
