"""Which form of an operator runs: its kernels or its torch form, chosen in this one place."""

from typing import Literal

from torch import Tensor

from .configs import gpu_arch

Backend = Literal["torch", "triton"]


def chosen(backend: Backend | None, x: Tensor) -> Backend:
    """The caller's choice; by device where there is none: triton for a GPU's tensors, else torch.

    Meta tensors that stand for a GPU's (`configs.standing_for`) are such. A door imports its
    kernels only after it, in the branch that needs them: Triton exists on Linux alone.
    """
    if backend is not None:
        return backend
    return "torch" if gpu_arch(x.device) is None else "triton"
