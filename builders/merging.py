"""Token merging: a sub-block runs on means of consecutive tokens."""

# B batch, T tokens, S tokens per group, N closed groups (of the row with most), D model width

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .body import Pass
from .caches import Memory, StateCache

Inner = Callable[[Tensor, Pass, Any], Tensor]


class MergeCache(Memory):
    """The body's cache; `state` holds the open group's sum and the last closed group's output."""

    def __init__(self, inner: Any, size: int) -> None:
        self.inner, self.size, self.state = inner, size, StateCache()

    @property
    def begun(self) -> bool:
        """Whether anything has been read."""
        return bool(self.state.named)

    def tensors(self) -> list[Tensor]:
        return [*self.state.tensors(), *(self.inner.tensors() if self.inner else [])]

    def fill_random(self, tokens: int) -> None:
        if self.inner is not None:
            self.inner.fill_random(max(1, tokens // self.size))


class TokenMerge(nn.Module):
    """Hourglass (arXiv 2110.13711): the sub-block reads the mean of each group of `size` tokens.

    Groups count from the first token of a document. The output at a token is that of the last
    group closed at it, which keeps the model causal, and zero before the first one.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_BTD: Tensor, run: Pass, inner: Inner, cache: MergeCache | None) -> Tensor:
        """y_BTD of the sub-block `inner(means_BND, pass of the N groups, its cache)`."""
        if cache is not None and cache.begun:
            outputs = [self._step(x_BTD, run, t, inner, cache) for t in range(x_BTD.shape[1])]
            return torch.stack(outputs, 1)
        S, valid_BT = self.size, run.valid_BT
        closes_BT = (run.positions_BT + 1) % S == 0
        if valid_BT is not None:
            closes_BT = closes_BT & valid_BT
        count_B = closes_BT.sum(1)
        N = max(1, int(count_B.max()))  # a pass has at least one token, perhaps an invalid one
        closing_BN = (~closes_BT).to(torch.int8).argsort(dim=1, stable=True)[:, :N]
        exists_BN = torch.arange(N, device=x_BTD.device) < count_B[:, None]
        member_BNS = closing_BN[..., None] - torch.arange(S - 1, -1, -1, device=x_BTD.device)
        index = member_BNS.clamp(min=0).flatten(1)[..., None].expand(-1, -1, x_BTD.shape[-1])
        means_BND = x_BTD.gather(1, index).unflatten(1, (N, S)).mean(2)
        groups = self._pass(run, closing_BN, exists_BN)
        y_BND = inner(means_BND, groups, cache.inner if cache else None)
        number_BT = torch.where(run.positions_BT + 1 < S, 0, closes_BT.cumsum(1))
        outputs_BND = torch.cat([torch.zeros_like(y_BND[:, :1]), y_BND], 1)
        out_BTD = outputs_BND.gather(1, number_BT[..., None].expand_as(x_BTD))
        if cache is not None:
            open_BT = closes_BT.cumsum(1) == count_B[:, None]
            open_BT = open_BT & ~closes_BT if valid_BT is None else open_BT & ~closes_BT & valid_BT
            cache.state["sum"] = (x_BTD * open_BT[..., None]).sum(1)
            last_B11 = count_B[:, None, None].expand(-1, 1, x_BTD.shape[-1])
            cache.state["last"] = outputs_BND.gather(1, last_B11)[:, 0]
        return out_BTD

    def _pass(self, run: Pass, closing_BN: Tensor, exists_BN: Tensor) -> Pass:
        """The pass of the groups.

        Tensors that earlier sub-blocks wrote are left out: they are of tokens.
        """
        segment_ids = run.segment_ids_BT
        if segment_ids is not None:  # padding is a document of its own, the last one
            last = torch.iinfo(segment_ids.dtype).max
            segment_ids = segment_ids.gather(1, closing_BN).masked_fill(~exists_BN, last)
        return Pass(
            positions_BT=run.positions_BT.gather(1, closing_BN) // self.size,
            tokens_BT=None if run.tokens_BT is None else run.tokens_BT.gather(1, closing_BN),
            segment_ids_BT=segment_ids,
            valid_BT=None if bool(exists_BN.all()) else exists_BN,
            whole_rows=run.whole_rows and bool(exists_BN.all()),
        )

    def _step(self, x_BTD: Tensor, run: Pass, t: int, inner: Inner, cache: MergeCache) -> Tensor:
        """One token per row after cached ones; rows whose group it closes run the sub-block."""
        position_B, x_BD, state = run.positions_BT[:, t], x_BTD[:, t], cache.state
        if run.valid_BT is not None:
            x_BD = x_BD * run.valid_BT[:, t, None]
        sum_BD = state["sum"] + x_BD
        closes_B = (position_B + 1) % self.size == 0
        if run.valid_BT is not None:
            closes_B = closes_B & run.valid_BT[:, t]
        state["sum"] = torch.where(closes_B[:, None], 0, sum_BD)
        if bool(closes_B.any()):
            group = Pass(
                positions_BT=position_B[:, None] // self.size,
                tokens_BT=None if run.tokens_BT is None else run.tokens_BT[:, t : t + 1],
                valid_BT=None if bool(closes_B.all()) else closes_B[:, None],
            )
            y_BD = inner(sum_BD[:, None] / self.size, group, cache.inner)[:, 0]
            state["last"] = torch.where(closes_B[:, None], y_BD, state["last"])
        return state["last"]
