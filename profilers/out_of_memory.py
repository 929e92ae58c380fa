"""Recognition of out-of-memory errors, which are results of a run and no program errors."""

import torch

CPU_MESSAGE = "can't allocate memory"  # of the RuntimeError that torch's CPU allocator raises


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: on a GPU, in torch's CPU allocator, in Python."""
    if isinstance(error, RuntimeError) and CPU_MESSAGE in str(error):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def out_of_memory_reason(error: BaseException) -> str:
    """The first line of an out-of-memory error's message, which may be empty."""
    return (str(error) or "out of memory").splitlines()[0]
