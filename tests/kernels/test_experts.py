"""Mixture-of-experts operators on the CPU: torch implementation, input checks of the kernels."""

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.experts import op, reference
from archfront.kernels.requirements import Unsupported


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def wide(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def a_mixture(n_experts=5, gated=True):
    """x_ND, topk_weights_NK, [gate_EFD,] up_EFD, down_EDF for 33 tokens of 3 choices."""
    gates = [wide(n_experts, 8, 12)] if gated else []
    up, down = wide(n_experts, 8, 12), wide(n_experts, 12, 8)
    return wide(33, 12), wide(33, 3), *gates, up, down


def choices(n_experts=5):
    return torch.stack([torch.randperm(n_experts)[:3] for _ in range(33)])


def test_a_group_keeps_the_order_of_its_rows_and_those_of_no_expert_come_last():
    groups = op.group(torch.tensor([2, 0, -1, 2, 0, 3]), 5)
    assert groups.order_M.tolist() == [1, 4, 0, 3, 5, 2]
    assert groups.offsets_E1.tolist() == [0, 2, 2, 4, 5, 5]
    assert groups.offsets_E1.dtype == torch.int32


def test_no_rows_make_empty_groups():
    assert op.group(torch.empty(0, dtype=torch.int64), 3).offsets_E1.tolist() == [0, 0, 0, 0]


def test_every_row_uses_its_experts_matrix_and_bias():
    expert = torch.randint(0, 7, (40,))
    expert[expert == 3] = 4  # one expert without rows
    groups = op.group(expert, 7)
    x, weight, bias = torch.randn(40, 12), torch.randn(7, 8, 12), torch.randn(7, 8)
    y = op.grouped_linear(x[groups.order_M], weight, bias, groups)
    one_by_one = torch.stack([weight[e] @ row + bias[e] for row, e in zip(x, expert, strict=True)])
    torch.testing.assert_close(y, one_by_one[groups.order_M])


def test_a_row_of_no_expert_gives_zero():
    groups = op.group(torch.tensor([0, -1, 1, -1]), 2)
    y = op.grouped_linear(torch.randn(4, 12), torch.randn(2, 8, 12), torch.randn(2, 8), groups)
    assert torch.equal(y[2:], torch.zeros(2, 8))
    assert y[:2].count_nonzero() == 16


def test_the_grouped_product_agrees_with_torchs_own():
    groups = op.group(torch.randint(0, 4, (40,)), 4)
    x, weight = torch.randn(40, 16), torch.randn(4, 8, 16)
    ours = op.grouped_linear(x, weight, None, groups)
    torch.testing.assert_close(ours, F.grouped_mm(x, weight.mT, offs=groups.offsets_E1[1:]))


def test_a_mixture_is_the_weighted_sum_of_its_tokens_experts():
    chosen = choices()
    x, topk_weights, gate, up, down = a_mixture()
    y = op.mixture(x, chosen, topk_weights, gate, up, down, "silu")
    for n in range(33):
        parts = [
            topk_weights[n, k] * down[e] @ (F.silu(gate[e] @ x[n]) * (up[e] @ x[n]))
            for k, e in enumerate(chosen[n])
        ]
        torch.testing.assert_close(y[n], sum(parts))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "oai", "relu2"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_torch_implementation_matches_its_reference_in_every_gradient(activation, limit):
    chosen = choices()
    chosen[torch.rand(33, 3) < 0.2] = -1
    gated = activation != "relu2"
    x, topk_weights, *weights = a_mixture(gated=gated)
    settings = *([] if gated else [None]), *weights, activation, limit
    ours, expected = (
        f(x, chosen, topk_weights, *settings) for f in (op.mixture, reference.mixture)
    )
    torch.testing.assert_close(ours, expected)
    dy = torch.randn_like(expected)
    ours, expected = (
        torch.autograd.grad(y, [x, topk_weights, *weights], dy) for y in (ours, expected)
    )
    torch.testing.assert_close(ours, expected)


def test_a_dropped_choice_adds_nothing_and_leaves_no_gradient():
    chosen = choices()
    chosen[7] = -1
    x, topk_weights, *weights = a_mixture()
    y = op.mixture(x, chosen, topk_weights, *weights, "silu")
    dx, dtopk_weights = torch.autograd.grad(y.sum(), [x, topk_weights])
    for nothing in (y[7], dx[7], dtopk_weights[7]):
        assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("backend", ["torch", "triton", None])
def test_a_meta_tensor_gives_shapes(backend):
    x, weight = meta(40, 16).requires_grad_(), meta(4, 32, 16).requires_grad_()
    down = meta(4, 16, 32).requires_grad_()
    chosen = torch.empty(40, 2, dtype=torch.int64, device="meta")
    groups = op.group(chosen[:, 0], 4)
    y = op.grouped_linear(x, weight, None, groups, backend=backend)
    assert (y.shape, y.dtype) == ((40, 32), torch.bfloat16)
    topk_weights = meta(40, 2, dtype=torch.float32).requires_grad_()
    y = op.mixture(x, chosen, topk_weights, weight, weight, down, "silu", backend=backend)
    y.sum().backward()
    assert (y.shape, y.dtype, x.grad.shape) == ((40, 16), torch.bfloat16, (40, 16))
    assert (topk_weights.grad.dtype, down.grad.shape) == (torch.float32, (4, 16, 32))


def mixed(
    x=(40, 16), topk_weights=(40, 2), up=(4, 32, 16), down=(4, 16, 32), gated=True, **settings
):
    chosen = torch.zeros(topk_weights, dtype=torch.int64, device="meta")
    gate = meta(*up) if gated else None
    activation = settings.pop("activation", "silu")
    return op.mixture(
        meta(*x),
        chosen,
        meta(*topk_weights),
        gate,
        meta(*up),
        meta(*down),
        activation,
        backend="triton",
    )


UNSUPPORTED = {
    r"x must be \[N, D\].*down=\(4, 32, 16\)": lambda: mixed(down=(4, 32, 16)),
    r"topk_weights \[N, K\].*topk_weights=\(41, 2\)": lambda: mixed(topk_weights=(41, 2)),
    "must be relu2 without a gate.*activation=silu, gate=False": lambda: mixed(gated=False),
    "must be relu2 without a gate.*activation=relu2, gate=True": lambda: mixed(activation="relu2"),
    "needs a CUDA tensor.*device=cpu": lambda: op.grouped_linear(
        torch.empty(4, 8), meta(2, 8, 8), None, op.group(torch.zeros(4), 2), backend="triton"
    ),
    "x must be float32, bfloat16 or float16": lambda: op.grouped_linear(
        meta(4, 8, dtype=torch.float64), meta(2, 8, 8), None, None, backend="triton"
    ),
    r"weight \[E, O, I\], got x=\(4, 8\), weight=\(2, 8, 9\)": lambda: op.grouped_linear(
        meta(4, 8), meta(2, 8, 9), None, None, backend="triton"
    ),
    "weight must be contiguous.*strides": lambda: op.grouped_linear(
        meta(4, 8), meta(2, 8, 8).mT, None, None, backend="triton"
    ),
    "bias must be contiguous, of the input's dtype": lambda: op.grouped_linear(
        meta(4, 8), meta(2, 8, 8), meta(2, 8, dtype=torch.float32), None, backend="triton"
    ),
    "groups must be of as many rows.*groups=5 rows, 3 experts, rows=4": lambda: op.grouped_linear(
        meta(4, 8), meta(2, 8, 8), None, op.group(torch.zeros(5), 3), backend="triton"
    ),
}


@pytest.mark.parametrize("constraint", UNSUPPORTED)
def test_the_kernels_reject_unsupported_inputs(constraint):
    with pytest.raises(Unsupported, match=constraint):
        UNSUPPORTED[constraint]()
