"""GRU and LSTM layers as in torch.nn."""

# B batch, T tokens, D model width, N units, O = gates x N

import torch
from torch import Tensor

from ...search_space.blocks import rnn as record
from ..body import Body, Pass
from ..caches import StateCache
from ..parameters import Parameters


class RNN(Body):
    """One torch.nn.GRU or LSTM layer of `width` units, and an output projection.

    Whole texts run in torch's fused operator (cuDNN on a GPU), cached and packed ones per token.
    """

    fields = frozenset(record.RNN.model_fields)

    def __init__(self, block: record.RNN, params: Parameters) -> None:
        super().__init__()
        self.block = block
        self.input = params.linear("input")
        self.hidden = params.linear("hidden")
        self.out_proj = params.linear("out_proj", to_residual=True)
        self.device, self.dtype = params.device, params.dtype

    def new_cache(self, batch: int) -> StateCache:
        names = ("h", "c") if self.block.cell == "lstm" else ("h",)
        shape = (batch, self.block.width)
        return StateCache(
            **{name: torch.zeros(shape, device=self.device, dtype=self.dtype) for name in names}
        )

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        if cache is None and run.segment_ids_BT is None:
            return self.out_proj(self._text(x_BTD))
        state = self.new_cache(len(x_BTD)) if cache is None else cache
        given_BTO, reads = self.input(x_BTD), []
        for t in range(x_BTD.shape[1]):
            keep_B1 = (run.positions_BT[:, t] > 0)[:, None]
            before = {name: x * keep_B1.to(x.dtype) for name, x in state.named.items()}
            after = self._step(given_BTO[:, t], before)
            if run.valid_BT is not None:
                valid_B1 = run.valid_BT[:, t, None]
                after = {n: torch.where(valid_B1, x, state[n]) for n, x in after.items()}
            state.named.update(after)
            reads.append(after["h"])
        return self.out_proj(torch.stack(reads, 1))

    def _text(self, x_BTD: Tensor) -> Tensor:
        weights = [self.input.weight, self.hidden.weight, self.input.bias, self.hidden.bias]
        zeros = list(self.new_cache(len(x_BTD)).named.values())
        settings = (True, 1, 0.0, self.training, False, True)
        if self.block.cell == "lstm":
            return torch.lstm(x_BTD, [zero[None] for zero in zeros], weights, *settings)[0]
        return torch.gru(x_BTD, zeros[0][None], weights, *settings)[0]

    def _step(self, given_BO: Tensor, before: dict[str, Tensor]) -> dict[str, Tensor]:
        """One token of torch.nn.GRU or torch.nn.LSTM: the new hidden (and cell) state."""
        recalled_BO = self.hidden(before["h"])
        if self.block.cell == "lstm":
            i, f, g, o = (given_BO + recalled_BO).chunk(4, -1)
            c = f.sigmoid() * before["c"] + i.sigmoid() * g.tanh()
            return {"h": o.sigmoid() * c.tanh(), "c": c}
        (ri, zi, ni), (rh, zh, nh) = given_BO.chunk(3, -1), recalled_BO.chunk(3, -1)
        reset, update = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        fresh = (ni + reset * nh).tanh()
        return {"h": (1 - update) * fresh + update * before["h"]}
