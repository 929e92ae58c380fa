"""Which rows or columns of a block's weights are which heads: for weights that move between models."""

# H heads, W width of a head

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..search_space.blocks.block import Block


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """A weight whose rows (axis 0) or columns (axis 1) are heads; `parts` has the index_HW of each.

    "q", "k", "v", "z", "o" mean query, key, value, output gate and output in every kind of mixer.
    """

    axis: int
    parts: Mapping[str, Tensor]


def stacked(block: Block) -> dict[str, Stacked]:
    """The weights of a block that are made of heads, by name; all others are plain."""
    layout = _LAYOUTS.get(block.kind)
    return {} if layout is None else layout(block)


def _rows(**sizes: tuple[int, int]) -> Stacked:
    """Parts one after the other, each of so many heads of a width."""
    parts, start = {}, 0
    for name, (heads, width) in sizes.items():
        parts[name] = start + torch.arange(heads * width).view(heads, width)
        start += heads * width
    return Stacked(axis=0, parts=parts)


def _columns(heads: int, width: int) -> Stacked:
    return Stacked(axis=1, parts=_rows(o=(heads, width)).parts)


def _attention(block: Any) -> dict[str, Stacked]:
    gate = (block.heads, block.value_dim if block.out_gate == "elementwise" else 1)
    return _heads(block, block.value_dim) | {"gate_proj": _rows(z=gate)}


def _shared(block: Any) -> dict[str, Stacked]:
    return _heads(block, block.head_dim)


def _heads(block: Any, value_dim: int) -> dict[str, Stacked]:
    return {
        "q_proj": _rows(q=(block.heads, block.head_dim)),
        "k_proj": _rows(k=(block.kv_heads, block.head_dim)),
        "v_proj": _rows(v=(block.kv_heads, value_dim)),
        "o_proj": _columns(block.heads, value_dim),
    }


def _mla(block: Any) -> dict[str, Stacked]:
    queries = _rows(latent_q=(block.heads, block.qk_head_dim))
    expanded = (block.heads, block.qk_nope_head_dim + block.v_head_dim)
    return {
        "q_proj": queries,
        "q_b_proj": queries,
        "kv_a_proj": _rows(latent=(1, block.kv_lora_rank), rope=(1, block.qk_rope_head_dim)),
        "kv_b_proj": _rows(latent_kv=expanded),
        "gate_proj": _rows(latent_z=(block.heads, block.v_head_dim)),
        "o_proj": Stacked(axis=1, parts=_rows(latent_o=(block.heads, block.v_head_dim)).parts),
    }


def _mamba2(block: Any) -> dict[str, Stacked]:
    values, shared = (block.heads, block.head_dim), (block.groups, block.d_state)
    return {
        "in_proj": _rows(z=values, v=values, k=shared, q=shared, dt=(block.heads, 1)),
        "conv": _rows(conv_v=values, conv_k=shared, conv_q=shared),
        "norm": _rows(norm=values),
        "out_proj": _columns(*values),
    }


def _linear(block: Any) -> dict[str, Stacked]:
    """Gated DeltaNet, KDA, retention, GLA, TTT: queries, keys, values in a row."""
    k_heads = getattr(block, "k_heads", None) or block.heads
    v_heads = getattr(block, "v_heads", None) or block.heads
    keys = (k_heads, getattr(block, "k_head_dim", None) or block.head_dim)
    values = (v_heads, getattr(block, "v_head_dim", None) or block.head_dim)
    inward = {"q": keys, "k": keys, "v": values}
    found = {
        "in_proj": _rows(**inward, **({"z": values} if block.kind == "gdn" else {})),
        "conv": _rows(conv_q=keys, conv_k=keys, conv_v=values),
        "decay_b_proj": _rows(decay=keys),
        "dt_bias": _rows(dt=keys if block.kind == "kda" else (v_heads, 1)),
        "gate_proj": _rows(z=values),
        "gate_b_proj": _rows(z=values),
        "out_proj": _columns(*values),
    }
    if block.kind == "gdn":  # there the gate of the output lies in in_proj
        rates = {"b": (v_heads, 1), "a": (v_heads, 1)} if block.gated else {"b": (v_heads, 1)}
        found["gate_proj"] = _rows(**rates)
    return found


def _lightning(block: Any) -> dict[str, Stacked]:
    size = (block.heads, block.head_dim)
    index = torch.arange(3 * block.width).view(block.heads, 3, block.head_dim)
    of_each = dict(zip("qkv", index.unbind(1), strict=True))
    return {
        "in_proj": Stacked(axis=0, parts=of_each),
        "gate_proj": _rows(z=size),
        "norm": _rows(norm=size),
        "out_proj": _columns(*size),
    }


def _rwkv7(block: Any) -> dict[str, Stacked]:
    size = (block.heads, block.head_dim)
    named = {"r_proj": "q", "k_proj": "k", "v_proj": "v", "gate_b_proj": "z"}
    plain = ("decay_b_proj", "a_b_proj", "v_b_proj", "k_k", "k_a", "r_k", "norm")
    rows = named | {name: name for name in plain}
    return {name: _rows(**{part: size}) for name, part in rows.items()} | {
        "out_proj": _columns(*size)
    }


def _mamba1(block: Any) -> dict[str, Stacked]:
    state = (1, block.d_state)
    return {
        "in_proj": _rows(x=(1, block.d_inner), gate=(1, block.d_inner)),
        "x_proj": _rows(rate=(1, block.dt_rank), B=state, C=state),
    }


def _rnn(block: Any) -> dict[str, Stacked]:
    gates = 4 if block.cell == "lstm" else 3
    rows = _rows(**{f"gate{i}": (1, block.width) for i in range(gates)})
    return {"input": rows, "hidden": rows}


_LAYOUTS: dict[str, Callable[[Any], dict[str, Stacked]]] = {
    "attn": _attention,
    "shared": _shared,
    "mla": _mla,
    "mamba2": _mamba2,
    "mamba1": _mamba1,
    "gdn": _linear,
    "kda": _linear,
    "retention": _linear,
    "gla": _linear,
    "ttt_linear": _linear,
    "lightning": _lightning,
    "rwkv7": _rwkv7,
    "rnn": _rnn,
}
