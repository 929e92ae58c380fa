"""Mixture of depths: a sub-block runs on the tokens that a router selects."""

# B batch, T tokens, C selected tokens (of the row with most), D model width

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .body import Pass
from .parameters import Parameters


class DepthRouter(nn.Module):
    """arXiv 2404.02258 with a causal selection by sign.

    A token is selected if its logit w . x is positive; the output of the sub-block is multiplied by
    the sigmoid of the logit and is zero for other tokens. `capacity_loss` of the last forward
    trains the fraction of selected tokens towards `capacity`: the binary cross-entropy of the
    logits against membership in the top `capacity` of the row (section 3.5 of the paper).
    """

    capacity_loss: Tensor

    def __init__(self, capacity: float, params: Parameters) -> None:
        super().__init__()
        self.capacity = capacity
        self.weight = params.normal("weight")

    def forward(self, x_BTD: Tensor, run: Pass, inner: Callable[[Tensor, Pass], Tensor]) -> Tensor:
        """y_BTD of the sub-block `inner(x_BCD, pass of the C selected tokens)`."""
        logits_BT = (x_BTD @ self.weight[0]).float()
        self._set_capacity_loss(logits_BT)
        selected_BT = logits_BT > 0
        if run.valid_BT is not None:
            selected_BT = selected_BT & run.valid_BT
        count_B = selected_BT.sum(1)
        C = max(1, int(count_B.max()))  # a pass has at least one token, perhaps an invalid one
        order_BC = (~selected_BT).to(torch.int8).argsort(dim=1, stable=True)[:, :C]
        valid_BC = torch.arange(C, device=x_BTD.device) < count_B[:, None]
        subset = _subset(run, order_BC, valid_BC)
        index_BCD = order_BC[..., None].expand(-1, -1, x_BTD.shape[-1])
        y_BCD = inner(x_BTD.gather(1, index_BCD), subset)
        weight_BC = logits_BT.gather(1, order_BC).sigmoid() * valid_BC
        y_BCD = torch.where(valid_BC[..., None], y_BCD, 0) * weight_BC[..., None].to(y_BCD.dtype)
        return torch.zeros_like(x_BTD).scatter(1, index_BCD, y_BCD)

    def _set_capacity_loss(self, logits_BT: Tensor) -> None:
        wanted = max(1, round(self.capacity * logits_BT.shape[1]))
        best_BT = torch.zeros_like(logits_BT).scatter(1, logits_BT.topk(wanted, 1).indices, 1.0)
        self.capacity_loss = F.binary_cross_entropy_with_logits(logits_BT, best_BT)


def _subset(run: Pass, order_BC: Tensor, valid_BC: Tensor) -> Pass:
    """The pass of the selected tokens.

    Tensors that earlier sub-blocks wrote are left out: they are of all tokens.
    """
    segment_ids = run.segment_ids_BT
    if segment_ids is not None:  # padding is a document of its own, the last one
        last = torch.iinfo(segment_ids.dtype).max
        segment_ids = segment_ids.gather(1, order_BC).masked_fill(~valid_BC, last)
    return Pass(
        positions_BT=run.positions_BT.gather(1, order_BC),
        tokens_BT=None if run.tokens_BT is None else run.tokens_BT.gather(1, order_BC),
        segment_ids_BT=segment_ids,
        valid_BT=valid_BC,
        subset=True,
    )
