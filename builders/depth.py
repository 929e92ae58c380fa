"""Mixture of depths: a router decides token by token who takes part in a sub-block."""

# B batch, T tokens, C tokens that take part (of the row with most), D model width

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .body import Pass
from .parts import Parts


class DepthRouter(nn.Module):
    """arXiv 2404.02258, routed by sign so that no later token matters.

    A token takes part where its logit is above zero, and its part is weighed by the sigmoid of it.
    `share_loss` pulls the share of such tokens to `capacity`: each logit is pushed to the side that
    the best tokens of its text would be on (section 3.5 of the paper).
    """

    share_loss: Tensor

    def __init__(self, capacity: float, parts: Parts) -> None:
        super().__init__()
        self.capacity = capacity
        self.weight = parts.normal("weight")

    def forward(self, x_BTD: Tensor, run: Pass, inside: Callable[[Tensor, Pass], Tensor]) -> Tensor:
        logits_BT = (x_BTD @ self.weight[0]).float()
        self._account(logits_BT, run)
        takes_BT = logits_BT > 0
        if run.valid_BT is not None:
            takes_BT = takes_BT & run.valid_BT
        count_B = takes_BT.sum(1)
        C = max(1, int(count_B.max()))  # a pass needs a token, if only an invalid one
        order_BC = (~takes_BT).to(torch.int8).argsort(dim=1, stable=True)[:, :C]
        valid_BC = torch.arange(C, device=x_BTD.device) < count_B[:, None]
        part = _chosen(run, order_BC, valid_BC)
        index_BCD = order_BC[..., None].expand(-1, -1, x_BTD.shape[-1])
        y_BCD = inside(x_BTD.gather(1, index_BCD), part)
        weight_BC = logits_BT.gather(1, order_BC).sigmoid() * valid_BC
        y_BCD = torch.where(valid_BC[..., None], y_BCD, 0) * weight_BC[..., None].to(y_BCD.dtype)
        return torch.zeros_like(x_BTD).scatter(1, index_BCD, y_BCD)

    def _account(self, logits_BT: Tensor, run: Pass) -> None:
        wanted = max(1, round(self.capacity * logits_BT.shape[1]))
        best_BT = torch.zeros_like(logits_BT).scatter(1, logits_BT.topk(wanted, 1).indices, 1.0)
        self.share_loss = F.binary_cross_entropy_with_logits(logits_BT, best_BT)


def _chosen(run: Pass, order_BC: Tensor, valid_BC: Tensor) -> Pass:
    """The pass of those that take part; what earlier blocks left is of all tokens, so it stays out."""
    segment_ids = run.segment_ids_BT
    if segment_ids is not None:  # padding is a document of its own, behind all others
        last = torch.iinfo(segment_ids.dtype).max
        segment_ids = segment_ids.gather(1, order_BC).masked_fill(~valid_BC, last)
    return Pass(
        positions_BT=run.positions_BT.gather(1, order_BC),
        tokens_BT=None if run.tokens_BT is None else run.tokens_BT.gather(1, order_BC),
        segment_ids_BT=segment_ids,
        valid_BT=valid_BC,
    )
