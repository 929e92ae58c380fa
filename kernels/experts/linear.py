"""`grouped_linear` as a differentiable custom operator of Triton kernels."""

# M rows sorted by expert, I features in, O features out, E experts

from typing import Any

import torch
from torch import Tensor

from ..configs import arch_of
from ..launch import require_device, run
from ..requirements import as_rows, require, require_float
from .grouped_gemm import grouped_gemm_launch
from .groups import Groups
from .weight_grad import weight_grad_launch


@torch.library.custom_op("archfront::grouped_linear", mutates_args=())
def grouped_linear_op(
    x_MI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, offsets_E1: Tensor
) -> Tensor:
    """Custom operator `archfront::grouped_linear`, differentiable; the caller checks inputs."""
    y_MO = _grouped_linear_output(x_MI, weight_EOI, bias_EO, offsets_E1)
    arch = arch_of(x_MI.device)
    run(grouped_gemm_launch(arch, x_MI, weight_EOI.mT, bias_EO, offsets_E1, y_MO), x_MI)
    return y_MO


@grouped_linear_op.register_fake
def _grouped_linear_output(
    x_MI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, offsets_E1: Tensor
) -> Tensor:
    return x_MI.new_empty(len(x_MI), weight_EOI.shape[1])


@torch.library.custom_op("archfront::grouped_linear_backward", mutates_args=())
def grouped_linear_backward_op(
    dy_MO: Tensor, x_MI: Tensor, weight_EOI: Tensor, offsets_E1: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `grouped_linear_op`."""
    dx_MI, dweight_EOI, dbias_EO = gradients = _grouped_linear_gradients(
        dy_MO, x_MI, weight_EOI, offsets_E1, biased
    )
    arch = arch_of(x_MI.device)
    column_sums = dbias_EO if biased else None
    run(grouped_gemm_launch(arch, dy_MO, weight_EOI, None, offsets_E1, dx_MI), x_MI)
    run(weight_grad_launch(arch, dy_MO, x_MI, offsets_E1, dweight_EOI, column_sums), x_MI)
    return gradients


@grouped_linear_backward_op.register_fake
def _grouped_linear_gradients(
    dy_MO: Tensor, x_MI: Tensor, weight_EOI: Tensor, offsets_E1: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias), the last empty without a bias."""
    E, O, I = weight_EOI.shape
    dbias_EO = weight_EOI.new_empty(E if biased else 0, O)
    return x_MI.new_empty(len(x_MI), I), torch.empty_like(weight_EOI), dbias_EO


def _save_grouped_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_MI, weight_EOI, bias_EO, offsets_E1 = inputs
    ctx.biased = bias_EO is not None
    ctx.save_for_backward(x_MI, weight_EOI, offsets_E1)


def _backward_grouped_linear(ctx: Any, dy_MO: Tensor) -> tuple[Tensor | None, ...]:
    # autograd may pass an expanded gradient
    dx_MI, dweight_EOI, dbias_EO = grouped_linear_backward_op(
        dy_MO.contiguous(), *ctx.saved_tensors, ctx.biased
    )
    return dx_MI, dweight_EOI, dbias_EO if ctx.biased else None, None


grouped_linear_op.register_autograd(_backward_grouped_linear, setup_context=_save_grouped_linear)


def grouped_linear(
    x_MI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, groups: Groups
) -> Tensor:
    """Triton implementation of `op.grouped_linear`. Raises Unsupported."""
    require_device(x_MI)
    require_float(x_MI, "x")
    constraint = "x must be [M, I] and weight [E, O, I]"
    shapes = {"x": tuple(x_MI.shape), "weight": tuple(weight_EOI.shape)}
    require(x_MI.dim() == 2 and weight_EOI.dim() == 3, constraint, **shapes)
    require(x_MI.shape[1] == weight_EOI.shape[2], constraint, **shapes)
    E, O, _ = weight_EOI.shape
    require_parameter(weight_EOI, x_MI, "weight")
    if bias_EO is not None:
        require(bias_EO.shape == (E, O), "bias must be [E, O]", bias=tuple(bias_EO.shape), **shapes)
        require_parameter(bias_EO, x_MI, "bias")
    require_groups(groups, len(x_MI), E)
    return grouped_linear_op(as_rows(x_MI, "x"), weight_EOI, bias_EO, groups.offsets_E1)


def require_parameter(weight: Tensor, x: Tensor, name: str) -> None:
    """Raise Unsupported unless the weight is contiguous, of x's dtype and device."""
    require(
        (weight.dtype, weight.device) == (x.dtype, x.device) and weight.is_contiguous(),
        f"{name} must be contiguous, of the input's dtype {x.dtype} and device {x.device}",
        dtype=weight.dtype,
        device=weight.device,
        strides=weight.stride(),
    )


def require_groups(groups: Groups, num_rows: int, n_experts: int) -> None:
    """Raise Unsupported unless the groups are of `num_rows` rows and `n_experts` experts."""
    constraint = "groups must be of as many rows as x and of as many experts as the weight"
    order, offsets = len(groups.order_M), len(groups.offsets_E1)
    values = {"groups": f"{order} rows, {offsets - 1} experts", "rows": num_rows}
    require((order, offsets) == (num_rows, n_experts + 1), constraint, **values, experts=n_experts)
