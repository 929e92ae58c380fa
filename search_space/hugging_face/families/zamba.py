"""Zamba2."""

from collections.abc import Iterable

from ...architecture import Architecture
from ...document import InputError
from ..family import family
from ..feed_forward import activation
from ..json_fields import Fields, coalesce
from ..layers import layer_types, num_layers
from ..mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    derived,
    expected,
    field,
    get_field,
    ignored,
)
from ..model import top_level
from ..rope import OptionalRope, rope


def _stack() -> FieldMapping:
    """Mamba-2 layers; in a hybrid layer the shared block `@` comes before.

    Reading raises InputError where the list is absent and the number of layers is not the default.
    """
    name = "layers_block_type"
    symbols_of = {"linear_attention": "M", "hybrid": "@"}
    usual = "M" + "MMMMM@" * 7 + "MMMM@MMM@MM"

    def default(fields: Fields, number: int) -> Iterable[str]:
        if number != len(usual):
            raise fields.error(name, f"required field is missing, as num_hidden_layers is {number}")
        return usual

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        number = num_layers(fields, "num_hidden_layers", 54)
        listed = layer_types(f"{name}|layer_types", symbols_of, default).read(fields, number)
        draft.symbols = tuple(s for symbol in listed for s in ("@M" if symbol == "@" else "M"))

    def write(architecture: Architecture, config: Config) -> None:
        text = "".join(architecture.symbols).replace("@M", "h")
        types = {"h": "hybrid", "M": "linear_attention"}
        if odd := next((symbol for symbol in text if symbol not in types), None):
            raise InputError(f"pattern: each layer must be M or @M, got {odd!r}")
        config[name] = [types[symbol] for symbol in text]
        config["num_hidden_layers"] = len(text)

    return CustomMapping(read=read, write=write)


def _expand() -> FieldMapping:
    """`mamba_expand`, the inner width of Mamba-2 over d_model, and the head width that follows."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        d_model = draft.get("d_model")
        expanded = coalesce(fields.integer("mamba_expand"), 2) * d_model
        draft.set("M.head_dim", expanded // draft.get("M.heads"))
        fields.expect("mamba_headdim", draft.get("M.head_dim"))
        fields.expect("attention_hidden_size", 2 * d_model)

    def write(architecture: Architecture, config: Config) -> None:
        if (inner := get_field(architecture, "M.d_inner")) is not None:
            config["mamba_expand"] = max(1, inner // architecture.d_model)

    return CustomMapping(read=read, write=write)


ZAMBA2 = family(
    "zamba2",
    "Zamba2ForCausalLM",
    top_level(d_model=2560, vocab_size=32000, eps=1e-5, tied=True),
    block_kinds(mamba2="M", shared="@"),
    field("M.heads", "n_mamba_heads", 8),
    field("M.d_state", "mamba_d_state", 64),
    field("M.groups", "mamba_ngroups", 1),
    field("M.conv", "mamba_d_conv", 4),
    field("@.copies", "num_mem_blocks", 1),
    field("@.heads", "num_attention_heads", 32),
    field("@.kv_heads", "num_key_value_heads", lambda draft: draft.get("@.heads")),
    activation("@", default="gelu"),
    field("@.adapter_rank", "adapter_rank|lora_rank", 128),
    derived(
        "@.head_dim",
        lambda draft: 2 * draft.get("d_model") // draft.get("@.heads"),
        "attention_head_dim",
    ),
    field("@.width", "intermediate_size|ffn_hidden_size", lambda draft: 4 * draft.get("d_model")),
    _expand(),
    OptionalRope(
        rope=rope("@"),
        enabled=lambda fields: bool(fields.flag("use_mem_rope")),
        write_enabled=lambda on: {"use_mem_rope": on},
    ),
    _stack(),
    expected(use_shared_attention_adapter=False, use_shared_attention_lora=False),
    expected(add_bias_linear=False, use_long_context=False, use_shared_block_lora=True),
    ignored("hybrid_layer_ids", "kv_channels", "num_query_groups", "use_conv_bias"),
)
