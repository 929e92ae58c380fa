"""Token merging: a sub-block works on means of neighboring tokens."""

# B batch, T tokens, S tokens of a group, N closed groups (of the row with most), D model width

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .body import Pass
from .caches import Memory, StateCache

Inside = Callable[[Tensor, Pass, Any], Tensor]


class MergeCache(Memory):
    """The sum of the open group and the output of the last closed one, beside the body's cache."""

    def __init__(self, inner: Any, size: int) -> None:
        self.inner, self.size, self.held = inner, size, StateCache()

    @property
    def begun(self) -> bool:
        return bool(self.held.named)

    def tensors(self) -> list[Tensor]:
        return [*self.held.tensors(), *(self.inner.tensors() if self.inner else [])]

    def fill_random(self, tokens: int) -> None:
        if self.inner is not None:
            self.inner.fill_random(max(1, tokens // self.size))


class TokenMerge(nn.Module):
    """Groups of `size` tokens, from the first of a document on, enter as their mean.

    Every token reads what the last group that is closed gives (Hourglass, arXiv 2110.13711, with a
    shift that keeps later tokens out); before the first one it reads zero.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_BTD: Tensor, run: Pass, inside: Inside, cache: MergeCache | None) -> Tensor:
        if cache is not None and cache.begun:
            outputs = [self._token(x_BTD, run, t, inside, cache) for t in range(x_BTD.shape[1])]
            return torch.stack(outputs, 1)
        S, valid_BT = self.size, run.valid_BT
        closes_BT = (run.positions_BT + 1) % S == 0
        if valid_BT is not None:
            closes_BT = closes_BT & valid_BT
        count_B = closes_BT.sum(1)
        N = max(1, int(count_B.max()))  # a pass needs a token, if only an invalid one
        closing_BN = (~closes_BT).to(torch.int8).argsort(dim=1, stable=True)[:, :N]
        exists_BN = torch.arange(N, device=x_BTD.device) < count_B[:, None]
        member_BNS = closing_BN[..., None] - torch.arange(S - 1, -1, -1, device=x_BTD.device)
        index = member_BNS.clamp(min=0).flatten(1)[..., None].expand(-1, -1, x_BTD.shape[-1])
        means_BND = x_BTD.gather(1, index).unflatten(1, (N, S)).mean(2)
        part = self._pass(run, closing_BN, exists_BN)
        y_BND = inside(means_BND, part, cache.inner if cache else None)
        number_BT = torch.where(run.positions_BT + 1 < S, 0, closes_BT.cumsum(1))
        given = torch.cat([torch.zeros_like(y_BND[:, :1]), y_BND], 1)
        out_BTD = given.gather(1, number_BT[..., None].expand_as(x_BTD))
        if cache is not None:
            open_BT = closes_BT.cumsum(1) == count_B[:, None]
            open_BT = open_BT & ~closes_BT if valid_BT is None else open_BT & ~closes_BT & valid_BT
            cache.held["sum"] = (x_BTD * open_BT[..., None]).sum(1)
            last_B11 = count_B[:, None, None].expand(-1, 1, x_BTD.shape[-1])
            cache.held["last"] = given.gather(1, last_B11)[:, 0]
        return out_BTD

    def _pass(self, run: Pass, closing_BN: Tensor, exists_BN: Tensor) -> Pass:
        """The pass of the groups; what earlier blocks left is of tokens, so it stays out."""
        segment_ids = run.segment_ids_BT
        if segment_ids is not None:  # padding is a document of its own, behind all others
            last = torch.iinfo(segment_ids.dtype).max
            segment_ids = segment_ids.gather(1, closing_BN).masked_fill(~exists_BN, last)
        return Pass(
            positions_BT=run.positions_BT.gather(1, closing_BN) // self.size,
            tokens_BT=None if run.tokens_BT is None else run.tokens_BT.gather(1, closing_BN),
            segment_ids_BT=segment_ids,
            valid_BT=None if bool(exists_BN.all()) else exists_BN,
            reads_texts=run.reads_texts and bool(exists_BN.all()),
        )

    def _token(self, x_BTD: Tensor, run: Pass, t: int, inside: Inside, cache: MergeCache) -> Tensor:
        """One more token a row; the rows whose group it closes get a new output."""
        position_B, x_BD, held = run.positions_BT[:, t], x_BTD[:, t], cache.held
        if run.valid_BT is not None:
            x_BD = x_BD * run.valid_BT[:, t, None]
        sum_BD = held["sum"] + x_BD
        closes_B = (position_B + 1) % self.size == 0
        if run.valid_BT is not None:
            closes_B = closes_B & run.valid_BT[:, t]
        held["sum"] = torch.where(closes_B[:, None], 0, sum_BD)
        if bool(closes_B.any()):
            part = Pass(
                positions_BT=position_B[:, None] // self.size,
                tokens_BT=None if run.tokens_BT is None else run.tokens_BT[:, t : t + 1],
                valid_BT=None if bool(closes_B.all()) else closes_B[:, None],
            )
            y_BD = inside(sum_BD[:, None] / self.size, part, cache.inner)[:, 0]
            held["last"] = torch.where(closes_B[:, None], y_BD, held["last"])
        return held["last"]
