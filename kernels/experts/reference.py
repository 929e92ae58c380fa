"""Reference of the operators in plain torch: the specification that all implementations match.

A product is rounded to the dtype of its input, as torch's own is; the choices of a token are summed
in float32, or in float64 where the input is float64. Autograd of these lines defines
every gradient.
"""

# M rows sorted by expert, I features in, O features out, N tokens, K choices per token, E experts,
# D model width, F hidden width per expert

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rows import reference as rows
from .groups import Groups, rows_of_expert

Activation = rows.Activation | Literal["relu2"]


def grouped_linear(
    x_MI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, groups: Groups
) -> Tensor:
    """y = W_e x + b_e for every row x of expert e, 0 for rows of none; x_MI is sorted by expert."""
    *of_expert, rest_MI = x_MI.split(rows_of_expert(groups, len(x_MI)))
    E, O, _ = weight_EOI.shape
    biases = [None] * E if bias_EO is None else bias_EO.unbind()
    y = [F.linear(*each) for each in zip(of_expert, weight_EOI.unbind(), biases, strict=True)]
    return torch.cat([*y, rest_MI.new_zeros(len(rest_MI), O)])


def mixture(
    x_ND: Tensor,
    chosen_NK: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    activation: Activation,
    limit: float | None = None,
) -> Tensor:
    """y_n = sum_k topk_weights_nk * expert_e(x_n) with e = chosen_nk; none where that is below 0.

    expert_e(x) = down_e glu(gate_e x, up_e x), or without a gate down_e relu2(up_e x).
    """
    y_ND = x_ND.new_zeros(x_ND.shape, dtype=torch.promote_types(x_ND.dtype, torch.float32))
    for e in range(len(up_EFD)):
        token_M, choice_M = torch.where(chosen_NK == e)
        x_MD, topk_weights_M1 = x_ND[token_M], topk_weights_NK[token_M, choice_M, None]
        gate_MF = None if gate_EFD is None else F.linear(x_MD, gate_EFD[e])
        hidden_MF = activated(gate_MF, F.linear(x_MD, up_EFD[e]), activation, limit)
        z_MD = F.linear(hidden_MF, down_EDF[e])
        y_ND = y_ND.index_add(0, token_M, topk_weights_M1.to(y_ND.dtype) * z_MD)
    return y_ND.to(x_ND.dtype)


def activated(
    gate: Tensor | None, up: Tensor, activation: Activation, limit: float | None
) -> Tensor:
    """An expert's hidden features: glu or relu2 of ../rows/reference.py."""
    if activation == "relu2":
        return rows.relu2(up)
    assert gate is not None, f"{activation} needs a gate"
    return rows.glu(gate, up, activation, limit)
