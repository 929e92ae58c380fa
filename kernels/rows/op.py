"""The door to the row operators: one function each, whatever the device.

    rms_norm(x, weight, eps)                                normalise the last dimension
    normed, summed = add_rms_norm(x, residual, weight, eps)     add, then normalise
    swiglu(gate, up)                                        silu(gate) * up

What they compute stands in reference.py, and backend="torch" runs just that, for any input.
backend="triton" runs a kernel or raises `Unsupported` (../laws.py) before it launches anything.
None picks by device: triton for CUDA tensors, torch for all others. Every operator has gradients
and takes meta tensors, no rows at all included.
"""

from torch import Tensor

from ..backend import Backend, chosen
from . import reference


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    zero_centered: bool = False,
    *,
    backend: Backend | None = None,
) -> Tensor:
    if chosen(backend, x) == "torch":
        return reference.rms_norm(x, weight, eps, zero_centered)
    from . import norm

    return norm.rms_norm(x, weight, eps, zero_centered)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    zero_centered: bool = False,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    if chosen(backend, x) == "torch":
        return reference.add_rms_norm(x, residual, weight, eps, zero_centered)
    from . import norm

    return norm.add_rms_norm(x, residual, weight, eps, zero_centered)


def swiglu(gate: Tensor, up: Tensor, *, backend: Backend | None = None) -> Tensor:
    if chosen(backend, gate) == "torch":
        return reference.swiglu(gate, up)
    from . import swiglu

    return swiglu.swiglu(gate, up)
