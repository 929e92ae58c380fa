"""Families of attention and dense feed-forwards: Llama, Mistral, OLMo 2 and 3, Qwen3."""

from collections.abc import Iterable

from ..architecture import Architecture
from .family import family
from .json_fields import Fields, first
from .layers import ATTENTION, Column, every, layers, named, one_in, window_everywhere
from .parts import (
    Config,
    Draft,
    Pair,
    Part,
    activation,
    always,
    biases,
    dense,
    fact,
    gqa,
    look,
    outer,
    whole_heads,
)
from .positions import rotary

LLAMA = family(
    "llama",
    "LlamaForCausalLM",
    outer(d_model=4096, vocab_size=32000, eps=1e-6),
    gqa("*", heads=32),
    biases("*"),
    rotary("*"),
    dense(11008),
    activation("-"),
    fact("-.bias", "mlp_bias", False),
    layers(32, every("*"), every("-")),
    whole_heads("*"),
)


_every_window, _everywhere = window_everywhere(4096)


MISTRAL = family(
    "mistral",
    "MistralForCausalLM",
    outer(d_model=4096, vocab_size=32000, eps=1e-6),
    gqa("* W", heads=32, kv_heads=8),
    _everywhere,
    rotary("* W"),
    dense(14336),
    activation("-"),
    layers(32, _every_window, every("-")),
)


OLMO2 = family(
    "olmo2",
    "Olmo2ForCausalLM",
    outer(d_model=4096, vocab_size=50304, eps=1e-5),
    always("norm.placement", "post"),
    gqa("*", heads=32),
    biases("*"),
    always("*.qk_norm", "full"),
    rotary("*"),
    dense(11008),
    activation("-"),
    layers(32, every("*"), every("-")),
)


OLMO3 = family(
    "olmo3",
    "Olmo3ForCausalLM",
    outer(d_model=4096, vocab_size=50304, eps=1e-5),
    always("norm.placement", "post"),
    gqa("* W", heads=32),
    biases("* W"),
    always("* W.qk_norm", "full"),
    fact("W.window", "sliding_window", 4096),
    rotary("*", theta=500_000.0, label="full_attention"),
    rotary("W", theta=500_000.0, label="sliding_attention", old_scaling=None),
    dense(11008),
    activation("-"),
    layers(32, named("layer_types", ATTENTION, one_in(("W", "*"), 4)), every("-")),
)


def qwen3_mixers() -> Column:
    """Qwen3's kinds, or windows from one layer on, where they are switched on."""

    def absent(fields: Fields, number: int) -> Iterable[str]:
        on = fields.flag("use_sliding_window") and not fields.is_null("sliding_window")
        start = first(fields.integer("max_window_layers", least=0), 28)
        return ["W" if on and i >= start else "*" for i in range(number)]

    return named("layer_types", ATTENTION, absent)


def qwen3_window() -> Part:
    """Qwen3 forgets its window unless it is switched on."""

    def read(fields: Fields, draft: Draft) -> None:
        window = fields.integer("sliding_window")
        draft.put("W.window", first(window, 4096) if fields.flag("use_sliding_window") else None)
        fields.pass_over("max_window_layers")

    def write(architecture: Architecture, config: Config) -> None:
        window = look(architecture, "W.window")
        config |= {"sliding_window": window, "use_sliding_window": window is not None}

    return Pair(read=read, write=write)


QWEN3 = family(
    "qwen3",
    "Qwen3ForCausalLM",
    outer(d_model=4096, vocab_size=151_936, eps=1e-6),
    gqa("* W", heads=32, kv_heads=32, head_dim=128),
    biases("* W"),
    always("* W.qk_norm", "head"),
    qwen3_window(),
    rotary("* W"),
    dense(22016),
    activation("-"),
    layers(32, qwen3_mixers(), every("-")),
)


FAMILIES = (LLAMA, MISTRAL, OLMO2, OLMO3, QWEN3)
