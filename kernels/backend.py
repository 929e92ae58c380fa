"""Which form of an operator runs: its kernels or its torch form, chosen in this one place."""

from typing import Literal

from torch import Tensor

Backend = Literal["torch", "triton"]


def chosen(backend: Backend | None, x: Tensor) -> Backend:
    """The caller's choice; by device where there is none: triton for CUDA tensors, else torch.

    A door imports its kernels only after it, in the branch that needs them: Triton exists on Linux
    alone.
    """
    if backend is not None:
        return backend
    return "triton" if x.is_cuda else "torch"
