"""Mappings of recurrent blocks that several families share: Gated DeltaNet and Mamba."""

from collections.abc import Callable
from typing import Any

from ..architecture import Architecture
from ..document import InputError
from .json_fields import Fields, coalesce
from .mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    field,
    get_field,
)

# `layer_types` of hybrids of Gated DeltaNet and attention, with our symbols.
DELTA_NET_OR_ATTENTION = {"linear_attention": "G", "full_attention": "*"}


def gated_delta_net() -> tuple[FieldMapping, ...]:
    """Gated DeltaNet `G` with Qwen3-Next's field names and defaults."""
    return (
        *block_kinds(gdn="G"),
        field("G.k_heads", "linear_num_key_heads", 16),
        field("G.v_heads", "linear_num_value_heads", 32),
        field("G.k_head_dim", "linear_key_head_dim", 128),
        field("G.v_head_dim", "linear_value_head_dim", 128),
        field("G.conv", "linear_conv_kernel_dim", 4),
    )


def expansion(
    name: str, default: int, path: str, width: Callable[[ArchitectureDraft], int] | None = None
) -> FieldMapping:
    """The inner width as a multiple of d_model.

    It sets `path`. With `width`, the inner width that other fields give, it only checks that both
    agree, else raises InputError. Writing raises InputError for a width that is not a multiple.
    """
    symbol = path[0]

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        d_model = draft.get("d_model")
        expanded = coalesce(fields.integer(name), default) * d_model
        if width is None:
            draft.set(path, expanded)
        elif (inner := width(draft)) != expanded:
            raise fields.error(
                name,
                f"times hidden_size={d_model} must be the width of all heads, {inner}, "
                f"got {expanded}",
            )

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = architecture.blocks.get(symbol)
        if block is None:
            return
        times, rest = divmod(block.d_inner, architecture.d_model)
        if rest or not times:
            raise InputError(
                f"blocks.{symbol}.d_inner: must be a multiple of d_model={architecture.d_model} "
                f"for {name}, got {block.d_inner}"
            )
        config[name] = times

    return CustomMapping(read=read, write=write)


def mamba2_width(draft: ArchitectureDraft) -> int:
    """The inner width of Mamba-2 `M` by its heads."""
    return draft.get("M.heads") * draft.get("M.head_dim")


def mamba2_head_dim(name: str, width: Callable[[Fields, ArchitectureDraft], int]) -> FieldMapping:
    """The head width of Mamba-2 `M`; "auto" divides the inner width `width` among the heads.

    Raises InputError where the heads do not add up to the inner width.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        automatic = fields.data.get(name) in (None, "auto")
        fields.ignore(name)
        total, heads = width(fields, draft), draft.get("M.heads")
        head_dim = total // heads if automatic else fields.integer(name)
        draft.set("M.head_dim", head_dim)
        if head_dim * heads != total:
            raise fields.error(
                name, f"times {heads} heads must be the inner width {total}, got {head_dim}"
            )

    def write(architecture: Architecture, config: Config) -> None:
        config[name] = get_field(architecture, "M.head_dim") or "auto"

    return CustomMapping(read=read, write=write)
