"""Public API of the mixture-of-experts operators: one function each, on any device.

    groups = group(expert_M, n_experts)         rows by expert, without a host sync
    grouped_linear(x, weight, bias, groups)     sorted rows times their expert's matrix
    mixture(x, chosen, topk_weights, gate, up, down, "silu")    a whole routed feed-forward

reference.py defines what they compute, gradients included. Routing is the caller's: its gradients
flow through `topk_weights`. backend="torch" runs the torch implementation, for any input; it waits
for the device to count rows. backend="triton" runs kernels, or raises `requirements.Unsupported`
before anything is launched. None chooses by device: "triton" for CUDA tensors, "torch" for others.
Both are deterministic: equal inputs give equal bits.
"""

# M rows sorted by expert, I features in, O features out, N tokens, K choices per token, E experts,
# D model width, F hidden width per expert

from torch import Tensor

from ..backend import Backend, choose_backend
from . import eager, reference
from .groups import Groups, group


def grouped_linear(
    x_MI: Tensor,
    weight_EOI: Tensor,
    bias_EO: Tensor | None,
    groups: Groups,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Linear layer per expert: y_m = weight_e x_m + bias_e with e the expert of row m, 0 for none.

    Args:
        x_MI: rows [M, I] sorted by expert, float32, bfloat16 or float16.
        weight_EOI, bias_EO: a matrix [E, O, I] and a bias [E, O] (or None) per expert, x's dtype.
        groups: which rows are whose: `group`.

    Returns y [M, O] in x's dtype. Raises Unsupported.
    """
    if choose_backend(backend, x_MI) == "torch":
        return reference.grouped_linear(x_MI, weight_EOI, bias_EO, groups)
    from . import linear

    return linear.grouped_linear(x_MI, weight_EOI, bias_EO, groups)


def mixture(
    x_ND: Tensor,
    chosen_NK: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    activation: reference.Activation,
    limit: float | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Routed feed-forward: y_n = sum_k topk_weights_nk * expert_e(x_n) with e = chosen_nk.

    expert_e(x) = down_e act(gate_e x, up_e x).

    Args:
        x_ND: tokens [N, D], float32, bfloat16 or float16.
        chosen_NK: int64 [N, K], the experts of each token. One below 0 is dropped: it adds
            nothing, and its weight has no gradient.
        topk_weights_NK: routing weights of the K choices [N, K].
        gate_EFD, up_EFD, down_EDF: matrices per expert, x's dtype; gate None for "relu2".
        activation: as in `rows.op.glu`, or "relu2".
        limit: clamp of gate and up, as in `rows.op.glu`.

    Returns y [N, D] in x's dtype. Raises Unsupported.
    """
    if choose_backend(backend, x_ND) == "torch":
        implementation = eager
    else:
        from . import mixture as implementation
    groups = group(chosen_NK.flatten(), len(up_EFD))
    return implementation.mixture(
        x_ND, topk_weights_NK, gate_EFD, up_EFD, down_EDF, activation, limit, groups
    )
