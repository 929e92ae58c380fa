"""Mistral and Mixtral."""

from ..attention import gqa
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts
from ..layers import every_layer, layers, shared_window, windowed_or_full
from ..model import top_level
from ..rope import rope

MISTRAL = family(
    "mistral",
    "MistralForCausalLM",
    top_level(d_model=4096, vocab_size=32000, eps=1e-6),
    gqa("* W", heads=32, kv_heads=8),
    shared_window(4096),
    rope("* W"),
    dense_ffn(14336),
    activation("-"),
    layers(32, windowed_or_full(4096), every_layer("-")),
)

MIXTRAL = family(
    "mixtral",
    "MixtralForCausalLM",
    top_level(d_model=4096, vocab_size=32000, eps=1e-5),
    gqa("* W", heads=32, kv_heads=8),
    shared_window(None),
    rope("* W", theta=1_000_000.0),
    routed_experts(n_experts=8, top_k=2, d_expert=14336, width_name="intermediate_size"),
    activation("E"),
    layers(32, windowed_or_full(None), every_layer("E")),
)
