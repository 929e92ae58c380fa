"""The door to the operators: one function each, whatever the device.

    rms_norm(x, weight, eps)                                normalise the last dimension
    normed, summed = add_rms_norm(x, residual, weight, eps)     add, then normalise
    swiglu(gate, up)                                        silu(gate) * up

What they compute stands in reference.py, and backend="torch" runs just that, for any input.
backend="triton" runs a kernel or raises `Unsupported` (in laws.py) before it launches anything.
None picks by device: triton for CUDA tensors, torch for all others. Every operator has gradients
and takes meta tensors, no rows at all included.
"""

from typing import Literal

from torch import Tensor

from . import reference

Backend = Literal["torch", "triton"]


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    zero_centered: bool = False,
    *,
    backend: Backend | None = None,
) -> Tensor:
    if _chosen(backend, x) == "torch":
        return reference.rms_norm(x, weight, eps, zero_centered)
    from .rows import norm

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
    if _chosen(backend, x) == "torch":
        return reference.add_rms_norm(x, residual, weight, eps, zero_centered)
    from .rows import norm

    return norm.add_rms_norm(x, residual, weight, eps, zero_centered)


def swiglu(gate: Tensor, up: Tensor, *, backend: Backend | None = None) -> Tensor:
    if _chosen(backend, gate) == "torch":
        return reference.swiglu(gate, up)
    from .rows import swiglu

    return swiglu.swiglu(gate, up)


def _chosen(backend: Backend | None, x: Tensor) -> Backend:
    """The one place where a backend is chosen.

    Triton is imported only after it, in the branch that needs it: it exists on Linux alone.
    """
    if backend is not None:
        return backend
    return "triton" if x.is_cuda else "torch"
