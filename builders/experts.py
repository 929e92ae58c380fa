"""The experts of a mixture: grouped products over tokens sorted by expert."""

# N tokens of all sequences, K experts per token, D width of the experts' input,
# M pairs of token and expert

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.experts import op as kernels
from ..kernels.experts.groups import Groups
from ..kernels.experts.reference import Activation
from ..search_space.blocks.moe import MoE as Record
from ..search_space.operators import NumberFormat
from .feed_forward import MLP

FUSED: dict[str, Activation] = {"swiglu": "silu", "geglu_tanh": "gelu_tanh", "relu2": "relu2"}


def has_fused_kernel(block: Record, format_: NumberFormat) -> bool:
    """Whether one operator computes all of a routed feed-forward with such weights."""
    return (
        block.activation in FUSED
        and block.expert_layers == 1
        and not (block.expert_bias or block.scale_input)
        and format_ == "bf16"
    )


def fused_sum(
    block: Record, experts: MLP, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor
) -> Tensor:
    """y_ND: the weighted sum of each token's experts in the fused kernel; -1 is no expert."""
    return kernels.mixture(
        x_ND,
        expert_NK,
        weight_NK,
        experts.gate_proj.weight if hasattr(experts, "gate_proj") else None,
        experts.up_proj.weight,
        experts.down_proj.weight,
        FUSED[block.activation],
        block.limit,
    )


def expert_outputs(
    block: Record,
    layers: Sequence[MLP],
    x_ND: Tensor,
    token_M: Tensor,
    expert_M: Tensor,
    weight_M: Tensor,
) -> Tensor:
    """y_MD: the weighted output of each expert for each of its tokens; zero where expert is -1.

    With `scale_input` the weight multiplies the expert's input instead (Llama 4).
    """
    groups = kernels.group(expert_M, block.n_experts)
    rows_MD = x_ND[token_M[groups.order_M]]
    weight_M1 = torch.where(expert_M < 0, 0, weight_M)[groups.order_M, None].to(x_ND.dtype)
    if block.scale_input:
        y_MD = _expert_layers(layers, rows_MD * weight_M1, groups)
    else:
        y_MD = _expert_layers(layers, rows_MD, groups) * weight_M1
    return y_MD[groups.order_M.argsort()]


def _expert_layers(layers: Sequence[MLP], x_MD: Tensor, groups: Groups) -> Tensor:
    """Feed-forward layers of each expert, residual but for the last."""
    *inner, last = layers
    for layer in inner:
        x_MD = x_MD + layer.feed(x_MD, groups)
    return last.feed(x_MD, groups)
