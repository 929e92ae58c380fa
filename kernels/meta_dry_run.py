"""Operators as a GPU that is not here would run them: on meta tensors, up to the launch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import _maybe_get_opdef
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode

from .configs import meta_tensors_as

aten = torch.ops.aten


@contextmanager
def on_absent(arch: str) -> Iterator[None]:
    """Inside, meta tensors run the kernels of a GPU of `arch` but for the launches themselves: doors
    choose them, constraints hold, tables give tiles. What one of them cannot run raises `Unsupported`.
    """
    patched = _config.patch(meta_nonzero_assume_all_nonzero=True)  # pyright: ignore[reportAttributeAccessIssue]  # torch installs it
    with meta_tensors_as(arch), patched, _Bodies():
        yield


class _Bodies(TorchDispatchMode):
    """Our operators do what they do on a GPU, not what their fakes say of it.

    Where a size depends on data, which are not here, any will do: the kernels' constraints ask for none.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        run: Callable[..., Any] = func
        if func.namespace == "archfront":
            operator = _maybe_get_opdef(func)
            assert operator is not None, "our operators are all custom_op"
            run = operator._init_fn
        elif func is aten._local_scalar_dense.default:
            run = _any_number
        elif func is aten.bincount.default:
            run = _any_counts
        return run(*args, **(kwargs or {}))


def _any_number(x: Tensor) -> int:
    return 1


def _any_counts(x: Tensor, weights: None = None, minlength: int = 0) -> Tensor:
    return x.new_zeros(minlength)
