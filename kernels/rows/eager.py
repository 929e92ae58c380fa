"""Torch implementation of the cross-entropy of rows of logits, in place."""

# C rows of a chunk, V vocabulary

import torch
from torch import Tensor

from .reference import IGNORED


def cross_entropy_rows(
    logits_CV: Tensor,
    target_C: Tensor,
    gradient_CV: Tensor | None,
    scale: float,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """The loss per row, 0 for an ignored target; overwrites the logits.

    `gradient_CV`, which may be the logits themselves, receives the gradient of the sum of losses.
    """
    counts = target_C != IGNORED
    hit_C1 = target_C.where(counts, 0).unsqueeze(1)
    logits_CV.mul_(scale)
    if softcap is not None:
        logits_CV.div_(softcap).tanh_().mul_(softcap)
    lse_C = logits_CV.logsumexp(1)
    loss_C = lse_C - logits_CV.gather(1, hit_C1).squeeze(1) + z_loss * lse_C.square()
    if gradient_CV is not None:
        slope = scale if softcap is None else scale * (1 - (logits_CV / softcap).square())
        dl_CV = logits_CV.sub_(lse_C.unsqueeze(1)).exp_()
        dl_CV.mul_((1 + 2 * z_loss * lse_C).where(counts, 0).unsqueeze(1))
        dl_CV.scatter_add_(1, hit_C1, -counts.to(dl_CV.dtype).unsqueeze(1))
        torch.mul(dl_CV, slope, out=gradient_CV)
    return loss_C.where(counts, 0)
