"""Hunyuan."""

from ...architecture import Architecture
from ..attention import attention_bias, gqa, qk_norm
from ..family import family
from ..feed_forward import activation
from ..json_fields import Fields, coalesce
from ..layers import every_layer, layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    constant,
    get_field,
    read_only,
)
from ..model import top_level
from ..rope import rope


def _number_or_list(path: str, name: str, default: int) -> FieldMapping:
    """A size given once, or as a list per layer, whose entries must be equal, else InputError."""
    names = tuple(name.split("|"))

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        if not isinstance(fields.value(*names), list):
            draft.set(path, coalesce(fields.integer(*names), default))
            return
        numbers = fields.integers(*names) or []
        if len(set(numbers)) != 1:
            raise fields.error(names[0], f"must be the same in every layer, got {numbers[:8]}")
        draft.set(path, numbers[0])

    def write(architecture: Architecture, config: Config) -> None:
        config[names[0]] = get_field(architecture, path)

    return CustomMapping(read=read, write=write)


def _expected_sizes(fields: Fields, draft: ArchitectureDraft) -> None:
    """Two fields of Hunyuan's own code, a number or a list per layer.

    They are not expressed unless they agree with `intermediate_size` and with one shared expert.
    """
    sizes = {"moe_intermediate_size": draft.get("E.d_expert"), "num_shared_expert": 1}
    for name, size in sizes.items():
        value = fields.value(name)
        values = value if isinstance(value, list) else [value]
        if value is not None and any(v != size for v in values):
            fields.mark_unexpressed(name)


HUNYUAN_V1_MOE = family(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    top_level(d_model=4096, vocab_size=290_943, eps=1e-5),
    gqa("*", heads=32),
    attention_bias("*"),
    qk_norm("*", "head", True),
    rope("*"),
    block_kinds(moe="E"),
    _number_or_list("E.n_experts", "num_experts|num_local_experts", 1),
    _number_or_list("E.top_k", "moe_topk|num_experts_per_tok", 1),
    _number_or_list("E.d_expert", "intermediate_size", 11008),
    constant("E.n_shared", 1),
    activation("E"),
    layers(32, every_layer("*"), every_layer("E")),
    read_only(_expected_sizes),
)
