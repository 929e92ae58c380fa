"""Mappings of attention blocks: grouped-query, latent, indexed; scales, caps, norms of q and k."""

from collections.abc import Callable
from typing import Any

from ..architecture import Architecture
from .json_fields import Fields, coalesce
from .mapping import (
    ArchitectureDraft,
    Config,
    CustomMapping,
    FieldMapping,
    block_kinds,
    expected,
    field,
    first_block,
    get_field,
    ignored,
    nullable,
    read_only,
)


def gqa(
    symbols: str, *, heads: int, kv_heads: int | None = None, head_dim: int | None = None
) -> tuple[FieldMapping, ...]:
    """Grouped-query attention: heads, key-value heads and head width.

    Without a default, `kv_heads` is `heads` and `head_dim` is d_model / heads; a null in the file
    means the same.
    """
    some = symbols.split()[0]

    def all_heads(draft: ArchitectureDraft) -> int:
        return draft.get(f"{some}.heads")

    def d_model_per_head(draft: ArchitectureDraft) -> int:
        return draft.get("d_model") // draft.get(f"{some}.heads")

    return (
        *block_kinds(attn=symbols),
        field(f"{symbols}.heads", "num_attention_heads", heads),
        field(f"{symbols}.kv_heads", "num_key_value_heads", kv_heads or all_heads, null=all_heads),
        field(
            f"{symbols}.head_dim",
            "head_dim|attention_head_dim",
            head_dim or d_model_per_head,
            null=d_model_per_head,
        ),
    )


def heads_divide_d_model(symbol: str) -> FieldMapping:
    """A check of some classes, even where head_dim is given; raises InputError when reading."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        d_model, heads = draft.get("d_model"), draft.get(f"{symbol}.heads")
        if d_model % heads:
            raise fields.error(
                "hidden_size", f"must be a multiple of num_attention_heads={heads}, got {d_model}"
            )

    return read_only(read)


def attention_bias(symbols: str, default: bool = False) -> tuple[FieldMapping, ...]:
    """`attention_bias`: the biases of the q, k, v and output projections together."""
    return (
        field(f"{symbols}.qkv_bias", "attention_bias", default),
        field(f"{symbols}.o_bias", "attention_bias", default),
    )


def qk_norm(symbols: str, norm: str, default: bool) -> FieldMapping:
    """`use_qk_norm`: the norm of queries and keys, `norm` where it is true, else "none"."""

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        on = coalesce(fields.flag("use_qk_norm"), default)
        draft.set(f"{symbols}.qk_norm", norm if on else "none")

    def write(architecture: Architecture, config: Config) -> None:
        config["use_qk_norm"] = get_field(architecture, f"{symbols}.qk_norm") not in (None, "none")

    return CustomMapping(read=read, write=write)


def softmax_scale(
    symbols: str,
    name: str,
    default: float,
    *,
    to_scale: Callable[[float], float] = lambda value: value,
    from_scale: Callable[[float], float] = lambda scale: scale,
) -> FieldMapping:
    """The factor of q k^T, set only where it is not head_dim ** -0.5.

    `to_scale` turns the number of the file into the factor, `from_scale` back.
    """

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        given = coalesce(fields.number(name), default)
        if given <= 0:
            raise fields.error(name, f"must be above zero, got {given}")
        scale = to_scale(given)
        for symbol in symbols.split():
            if scale != draft.get(f"{symbol}.head_dim") ** -0.5:
                draft.set(f"{symbol}.softmax_scale", scale)

    def write(architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, tuple(symbols.split()))
        if block is not None:
            config[name] = from_scale(block.softmax_scale or block.head_dim**-0.5)

    return CustomMapping(read=read, write=write)


def mla(symbol: str, *, heads: int, q_lora_rank: int | None) -> tuple[FieldMapping, ...]:
    """Multi-head latent attention with DeepSeek-V2's field names.

    `q_lora_rank` null means that queries are projected without a low rank.
    """
    return (
        *block_kinds(mla=symbol),
        field(f"{symbol}.heads", "num_attention_heads", heads),
        nullable(f"{symbol}.q_lora_rank", "q_lora_rank", q_lora_rank, integer=True),
        field(f"{symbol}.kv_lora_rank", "kv_lora_rank", 512),
        field(f"{symbol}.qk_nope_head_dim", "qk_nope_head_dim", 128),
        field(f"{symbol}.qk_rope_head_dim", "qk_rope_head_dim", 64),
        field(f"{symbol}.v_head_dim", "v_head_dim", 128),
        expected(attention_bias=False, mlp_bias=False),
        ignored("num_key_value_heads", "head_dim", "qk_head_dim"),
    )


def indexer(symbols: str, *, heads: int, head_dim: int, top_k: int) -> tuple[FieldMapping, ...]:
    """The indexer of DeepSeek Sparse Attention, which selects `top_k` tokens per query."""
    return (
        field(f"{symbols}.indexer.heads", "index_n_heads", heads),
        field(f"{symbols}.indexer.head_dim", "index_head_dim", head_dim),
        field(f"{symbols}.indexer.top_k", "index_topk", top_k),
    )
