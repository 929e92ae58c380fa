"""`mixture` as a differentiable custom operator: three launches forward, seven backward."""

# M choices sorted by expert, N tokens, K choices per token, E experts, D model width,
# F hidden width per expert

from typing import Any

import torch
from torch import Tensor

from ..configs import arch_of
from ..launch import require_device, run
from ..requirements import as_rows, needs_gradient, require, require_float
from ..rows.glu import ACTIVATIONS
from ..rows.reference import OAI_LIMIT
from .bwd_activation import bwd_activation_launch
from .combine import combine_launch
from .gate_up import gate_up_launch
from .grouped_gemm import grouped_gemm_launch
from .groups import Groups
from .linear import require_groups, require_parameter
from .reference import Activation
from .weight_grad import weight_grad_launch


@torch.library.custom_op("archfront::mixture", mutates_args=())
def mixture_op(
    x_ND: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    order_M: Tensor,
    offsets_E1: Tensor,
    activation: str,
    limit: float | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Custom operator `archfront::mixture`, differentiable; the caller checks inputs."""
    y_ND, gate_MF, up_MF = outputs = _mixture_outputs(
        x_ND,
        topk_weights_NK,
        gate_EFD,
        up_EFD,
        down_EDF,
        order_M,
        offsets_E1,
        activation,
        limit,
        keep,
    )
    arch, (M, K) = arch_of(x_ND.device), (len(order_M), topk_weights_NK.shape[1])
    kept = (None if gate_EFD is None else gate_MF, up_MF) if keep else (None, None)
    hidden_MF = x_ND.new_empty(M, up_EFD.shape[1])
    z_MD = x_ND.new_empty(M, x_ND.shape[1])
    for launch in (
        gate_up_launch(
            arch,
            x_ND,
            gate_EFD,
            up_EFD,
            order_M,
            offsets_E1,
            *kept,
            hidden_MF,
            K,
            activation,
            limit,
        ),
        grouped_gemm_launch(
            arch, hidden_MF, down_EDF.mT, None, offsets_E1, z_MD, choice_M=order_M, y_by_choice=True
        ),
        combine_launch(z_MD, topk_weights_NK, y_ND, K),
    ):
        run(launch, x_ND)
    return outputs


@mixture_op.register_fake
def _mixture_outputs(
    x_ND: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    order_M: Tensor,
    offsets_E1: Tensor,
    activation: str,
    limit: float | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, gate, up), the last two sorted by expert, or empty if not saved for the backward.

    Their rows of no expert are never written.
    """
    M, F = len(order_M), up_EFD.shape[1]
    gate_MF = x_ND.new_empty(M if keep and gate_EFD is not None else 0, F)
    return x_ND.new_empty(x_ND.shape), gate_MF, x_ND.new_empty(M if keep else 0, F)


@torch.library.custom_op("archfront::mixture_backward", mutates_args=())
def mixture_backward_op(
    dy_ND: Tensor,
    x_ND: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    order_M: Tensor,
    offsets_E1: Tensor,
    gate_MF: Tensor,
    up_MF: Tensor,
    activation: str,
    limit: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `mixture_op`."""
    dx_ND, dtopk_weights_NK, dgate_EFD, dup_EFD, ddown_EDF = gradients = _mixture_gradients(
        dy_ND, x_ND, topk_weights_NK, gate_EFD, up_EFD, down_EDF
    )
    arch, (M, K) = arch_of(x_ND.device), (len(order_M), topk_weights_NK.shape[1])
    gated = gate_EFD is not None
    dup_MF, hidden_MF, dgate_MF = (torch.empty_like(up_MF) for _ in range(3))
    dx_MD = x_ND.new_empty(M, x_ND.shape[1])
    by_choice = {"choice_M": order_M, "choices": K}
    down = grouped_gemm_launch(
        arch, dy_ND, down_EDF, None, offsets_E1, dup_MF, **by_choice, x_by_token=True
    )
    back = bwd_activation_launch(
        dup_MF,  # read, then overwritten
        topk_weights_NK,
        order_M,
        offsets_E1,
        gate_MF if gated else None,
        up_MF,
        hidden_MF,
        dgate_MF if gated else None,
        dup_MF,
        dtopk_weights_NK,
        activation,
        limit,
    )
    matrices = [
        weight_grad_launch(
            arch, dy_ND, hidden_MF, offsets_E1, ddown_EDF, **by_choice, a_by_token=True
        ),
        weight_grad_launch(arch, dup_MF, x_ND, offsets_E1, dup_EFD, **by_choice, b_by_token=True),
    ]
    other = None
    if gate_EFD is not None:
        other = dgate_MF, gate_EFD
        matrices.append(
            weight_grad_launch(
                arch, dgate_MF, x_ND, offsets_E1, dgate_EFD, **by_choice, b_by_token=True
            )
        )
    up = grouped_gemm_launch(
        arch, dup_MF, up_EFD, None, offsets_E1, dx_MD, **by_choice, y_by_choice=True, other=other
    )
    for launch in (down, back, *matrices, up, combine_launch(dx_MD, None, dx_ND, K)):
        run(launch, x_ND)
    return gradients


@mixture_backward_op.register_fake
def _mixture_gradients(
    dy_ND: Tensor,
    x_ND: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Empty gradients of x, topk_weights, gate, up and down; without a gate its has no elements."""
    return (
        x_ND.new_empty(x_ND.shape),
        torch.empty_like(topk_weights_NK),
        up_EFD.new_empty(0) if gate_EFD is None else torch.empty_like(gate_EFD),
        torch.empty_like(up_EFD),
        torch.empty_like(down_EDF),
    )


def _save_mixture(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.activation, ctx.limit, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward_mixture(ctx: Any, dy_ND: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    # autograd may pass an expanded gradient
    dx_ND, dtopk_weights_NK, dgate_EFD, dup_EFD, ddown_EDF = mixture_backward_op(
        dy_ND.contiguous(), *ctx.saved_tensors, ctx.activation, ctx.limit
    )
    gated = ctx.saved_tensors[2] is not None
    return dx_ND, dtopk_weights_NK, dgate_EFD if gated else None, dup_EFD, ddown_EDF, *[None] * 5


mixture_op.register_autograd(_backward_mixture, setup_context=_save_mixture)


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
    """Triton implementation of `op.mixture`. Raises Unsupported."""
    require_device(x_ND)
    require_float(x_ND, "x")
    require_float(topk_weights_NK, "topk_weights")
    weights = [up_EFD, down_EDF.mT, *([] if gate_EFD is None else [gate_EFD])]
    require(
        x_ND.dim() == 2
        and up_EFD.dim() == 3
        and all(w.shape == up_EFD.shape for w in weights)
        and up_EFD.shape[2] == x_ND.shape[1]
        and topk_weights_NK.dim() == 2
        and len(topk_weights_NK) == len(x_ND)
        and topk_weights_NK.device == x_ND.device,
        "x must be [N, D], topk_weights [N, K] on its device, gate and up [E, F, D], "
        "down [E, D, F]",
        x=tuple(x_ND.shape),
        topk_weights=tuple(topk_weights_NK.shape),
        gate=None if gate_EFD is None else tuple(gate_EFD.shape),
        up=tuple(up_EFD.shape),
        down=tuple(down_EDF.shape),
    )
    constraint = (
        f"the activation must be relu2 without a gate or one of {', '.join(ACTIVATIONS)} with it"
    )
    fused = ("relu2",) if gate_EFD is None else ACTIVATIONS
    require(activation in fused, constraint, activation=activation, gate=gate_EFD is not None)
    require_parameter(up_EFD, x_ND, "up")
    require_parameter(down_EDF, x_ND, "down")
    if gate_EFD is not None:
        require_parameter(gate_EFD, x_ND, "gate")
    require_groups(groups, topk_weights_NK.numel(), len(up_EFD))
    if limit is None and activation == "oai":
        limit = OAI_LIMIT
    y_ND, _, _ = mixture_op(
        as_rows(x_ND, "x"),
        topk_weights_NK.contiguous(),
        gate_EFD,
        up_EFD,
        down_EDF,
        groups.order_M,
        groups.offsets_E1,
        activation,
        limit,
        needs_gradient(x_ND, topk_weights_NK, *weights),
    )
    return y_ND
