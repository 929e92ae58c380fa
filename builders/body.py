"""What the stack asks of the inside of a sub-block, and what it tells it."""

# B batch, T tokens, D model width

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Unbuilt(ValueError):
    """The architecture is legal and counted, but a part of it has no module."""


@dataclass(kw_only=True)
class Pass:
    """One run through the stack: which tokens it reads, and what blocks leave for later ones.

    `positions_BT` count from the first token of a document. `segment_ids_BT` numbers the documents
    of packed rows, None where a row is one. `valid_BT` is false for the padding at the right end
    of shorter rows: no cache keeps it, and what is computed there means nothing. `reads_texts`:
    each row is one whole text from its first token on.
    """

    positions_BT: Tensor
    tokens_BT: Tensor | None = None
    embedded_BTD: Tensor | None = None
    segment_ids_BT: Tensor | None = None
    valid_BT: Tensor | None = None
    reads_texts: bool = False
    left: dict[Any, Any] = field(default_factory=dict)


class Body(nn.Module):
    """`forward` maps x_BTD to x_BTD and looks at no later token.

    With a cache, the tokens of a pass follow those that it holds, row by row: a whole text into an
    empty one, then one token at a time or several. So run, the outputs equal those of one pass
    over the whole text. A body that remembers earlier tokens gives an empty cache in `new_cache`.

    `fields` are those of the record that it obeys: a record that says more is refused, so that a
    field without a module is never overlooked.
    """

    fields: ClassVar[frozenset[str]]

    def new_cache(self, batch: int) -> Any:
        """An empty cache for so many rows; None for a body without memory."""
        return None

    def forward(self, x_BTD: Tensor, run: Pass, cache: Any = None) -> Tensor:
        raise NotImplementedError


def text_positions(batch: int, tokens: int, device: torch.device) -> Tensor:
    """positions_BT of whole rows."""
    return torch.arange(tokens, device=device).expand(batch, tokens)


def document_positions(segment_ids_BT: Tensor) -> Tensor:
    """positions_BT of packed rows: how far a token is from the first of its document."""
    B, T = segment_ids_BT.shape
    index_BT = text_positions(B, T, segment_ids_BT.device)
    first_BT = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    first_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return index_BT - (index_BT * first_BT).cummax(1).values
