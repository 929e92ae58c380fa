"""Torch implementation of a mixture: rows sorted once, one product per expert and matrix."""

# M choices sorted by expert, N tokens, K choices per token, E experts, D model width,
# F hidden width

import torch
from torch import Tensor

from .groups import Groups, rows_of_expert
from .reference import Activation, activated, grouped_linear


def mixture(
    x_ND: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    activation: Activation,
    limit: float | None,
    groups: Groups,
) -> Tensor:
    """Every choice writes to a row of its own before the sum: deterministic."""
    (N, K), D = topk_weights_NK.shape, x_ND.shape[1]
    choice_M = groups.order_M[: sum(rows_of_expert(groups, N * K)[:-1])]
    x_MD = x_ND[choice_M // K]
    gate_MF = None if gate_EFD is None else grouped_linear(x_MD, gate_EFD, None, groups)
    up_MF = grouped_linear(x_MD, up_EFD, None, groups)
    hidden_MF = activated(gate_MF, up_MF, activation, limit)
    z_MD = grouped_linear(hidden_MF, down_EDF, None, groups)
    z_NKD = z_MD.new_zeros(N * K, D).index_copy(0, choice_M, z_MD).view(N, K, D)
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    y_N1D = torch.bmm(topk_weights_NK.to(wide)[:, None], z_NKD.to(wide))
    return y_N1D.squeeze(1).to(x_ND.dtype)
