"""The door to the experts: one function each, whatever the device.

    groups = group(expert_M, n_experts)             which rows are whose, without a host sync
    grouped_linear(x, weight, bias, groups)         rows sorted by expert times their expert's matrix
    mixture(x, chosen, share, gate, up, down, "silu")       a whole routed feed-forward

What they compute stands in reference.py, gradients included. Who chooses whom is the caller's, as
are the gradients of that through `share`. backend="torch" runs the torch form (eager.py where it
differs from the reference), for any input; it waits for the device to count rows. backend="triton"
runs kernels or raises `Unsupported` (../requirements.py) before it launches anything. None picks by device:
triton for CUDA tensors, torch for all others. Both are deterministic: equal inputs, equal bits.
"""

# M rows sorted by expert, I features in, O features out, N tokens, K choices of a token, E experts,
# D model width, F hidden width of an expert

from torch import Tensor

from ..backend import Backend, chosen
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
    if chosen(backend, x_MI) == "torch":
        return reference.grouped_linear(x_MI, weight_EOI, bias_EO, groups)
    from . import linear

    return linear.grouped_linear(x_MI, weight_EOI, bias_EO, groups)


def mixture(
    x_ND: Tensor,
    chosen_NK: Tensor,
    share_NK: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    activation: reference.Activation,
    limit: float | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """A choice below 0 is dropped: it adds nothing, and its share has no gradient."""
    if chosen(backend, x_ND) == "torch":
        form = eager
    else:
        from . import mixture as form
    groups = group(chosen_NK.flatten(), len(up_EFD))
    return form.mixture(x_ND, share_NK, gate_EFD, up_EFD, down_EDF, activation, limit, groups)
