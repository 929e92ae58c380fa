"""The backend that runs an operator: its Triton kernels or its plain-torch implementation."""

from typing import Literal

from torch import Tensor

from .configs import gpu_arch

Backend = Literal["torch", "triton"]


def choose_backend(backend: Backend | None, x: Tensor) -> Backend:
    """`backend` where it is given; else "triton" if `x` is on a CUDA device and "torch" if not.

    A meta tensor counts as a CUDA one inside `configs.meta_tensors_as`. A public API imports its
    kernels after this call, in the branch that needs them: Triton exists on Linux alone.
    """
    if backend is not None:
        return backend
    return "torch" if gpu_arch(x.device) is None else "triton"
