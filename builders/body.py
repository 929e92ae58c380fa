"""The interface of a sub-block's body, and the context of one forward pass through the stack."""

# B batch, T tokens, D model width, P rotated pairs per head, N width of an RWKV-7 mixer

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..search_space.blocks.attention import Attention
from ..search_space.blocks.rope import Rope
from .caches import KeyValues


class Unbuilt(ValueError):
    """The architecture is legal and counted, but a part of it has no module."""


class RotaryKey(NamedTuple):
    """Cache key of a pair of rotary tables within one pass."""

    rope: Rope
    rotated: int
    head_dim: int
    dtype: torch.dtype
    attention_factor: bool


class SharedKeyValues(NamedTuple):
    """Keys and values that an attention block leaves to later ones, and the block's record."""

    keys: KeyValues
    block: Attention


@dataclass(kw_only=True)
class Pass:
    """The context of one forward pass: the tokens it reads, and tensors shared between sub-blocks.

    `positions_BT` count from the first token of a document. `segment_ids_BT` (int32, nondecreasing
    along T) numbers the documents of packed rows, None where each row is one document. `valid_BT`
    is False for padding at the right end of shorter rows: no cache keeps it, and the outputs there
    are undefined. `whole_rows`: each row is one whole text from its first token on, without
    padding. `subset`: the tokens were selected by a depth router, so positions may skip.

    The other fields are written by one sub-block and read by a later one.
    """

    positions_BT: Tensor
    tokens_BT: Tensor | None = None
    embedded_BTD: Tensor | None = None
    segment_ids_BT: Tensor | None = None
    valid_BT: Tensor | None = None
    whole_rows: bool = False
    subset: bool = False

    rotary_tables: dict[RotaryKey, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """(cos_BTP, sin_BTP) computed so far."""
    shared_kv: SharedKeyValues | None = None
    """Keys and values of the last attention block that made some; `kv_reuse` reads them."""
    first_values_BTN: Tensor | None = None
    """Values of the first RWKV-7 block, the residual of the later ones' values."""
    unnormed_BTD: Tensor | None = None
    """Input of a parallel group before its norm, read by routers with `router_scale`."""
    group_sums: tuple[Tensor, ...] = ()
    """Sums of the closed layer groups, [B, T, D] each, read by attention residuals."""
    shared_block_output_BTD: Tensor | None = None
    """Output of a Zamba2 shared block, added to the input of the next sub-block."""

    def copy(self) -> "Pass":
        """A copy of the context: writes to it do not reach this one."""
        return replace(self, rotary_tables=dict(self.rotary_tables))


class Body(nn.Module):
    """A mixer or feed-forward: `forward` maps x_BTD to y_BTD and is causal.

    With a cache, the tokens of a pass follow those that it holds, row by row: first a whole text
    into an empty cache, then one token or several at a time. The outputs equal those of one pass
    over the whole text. A body that depends on earlier tokens returns an empty cache from
    `new_cache`.

    `fields` are the fields of the record that the module implements. Building a record with any
    other field raises Unbuilt, so that none is ignored silently.
    """

    fields: ClassVar[frozenset[str]]

    def new_cache(self, batch: int) -> Any:
        """An empty cache for `batch` rows; None for a body without memory."""
        return None

    def forward(self, x_BTD: Tensor, run: Pass, cache: Any = None) -> Tensor:
        raise NotImplementedError


def text_positions(batch: int, tokens: int, device: torch.device) -> Tensor:
    """positions_BT of rows that are one text each."""
    return torch.arange(tokens, device=device).expand(batch, tokens)


def document_starts(segment_ids_BT: Tensor) -> Tensor:
    """starts_BT: whether a token is the first of its document."""
    starts_BT = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return starts_BT


def document_positions(segment_ids_BT: Tensor) -> Tensor:
    """positions_BT of packed rows: the distance of a token from the first of its document."""
    B, T = segment_ids_BT.shape
    index_BT = text_positions(B, T, segment_ids_BT.device)
    starts_BT = document_starts(segment_ids_BT)
    return index_BT - (index_BT * starts_BT).cummax(1).values
