"""Load balancing of experts: load counts, auxiliary loss, correction bias."""

# N tokens of all sequences, K experts per token, X experts that a token may select

import torch
from torch import Tensor

CORRECTED_ROUTERS = ("sigmoid_bias", "sqrtsoftplus_bias")  # balanced by a correction bias
LOSS_ROUTERS = ("softmax", "sigmoid", "sparsemixer")  # balanced by the auxiliary loss


def load_and_loss(
    chosen_NK: Tensor, scores_NX: Tensor, valid_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(load_X, balance_loss): tokens per expert, and X sum_e fraction_e mean(score_e).

    The loss of Switch Transformers (arXiv 2101.03961, equation 4) over all choices; 1 if balanced.
    Tokens outside `valid_N` do not count.
    """
    choices = scores_NX.shape[-1]
    if valid_N is not None:
        chosen_NK, scores_NX = chosen_NK[valid_N], scores_NX[valid_N]
    load_X = chosen_NK.flatten().bincount(minlength=choices)
    fraction_X = load_X.to(scores_NX.dtype) / max(1, chosen_NK.numel())
    return load_X, choices * fraction_X @ scores_NX.mean(0)


def correction_step(load_X: Tensor, rate: float) -> Tensor:
    """Change of the correction bias: `rate` towards an equal load (arXiv 2408.15664)."""
    load_X = load_X.float()
    return rate * torch.sign(load_X.mean() - load_X)
