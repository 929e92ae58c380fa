"""The one test for an out-of-memory error, on a GPU or on the host."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted.

    A GPU raises `torch.OutOfMemoryError`, Python `MemoryError`, and the CPU allocator of torch a
    plain `RuntimeError` that only its text tells from others.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
