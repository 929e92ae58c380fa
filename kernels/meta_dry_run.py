"""Dry run of operators on meta tensors: everything a given GPU would do, except the launches."""

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
def dry_run_on(arch: str) -> Iterator[None]:
    """Within it, operators on meta tensors do what they would on a GPU of `arch` ("sm_90").

    Backends are chosen, constraints checked and configurations looked up; nothing is launched.
    Raises `requirements.Unsupported` where a kernel cannot run: here for an unknown `arch`, and
    inside for shapes or dtypes. Results have shapes and dtypes, no values.
    """
    # torch installs `patch` at import
    patched = _config.patch(  # pyright: ignore[reportAttributeAccessIssue]
        meta_nonzero_assume_all_nonzero=True
    )
    with meta_tensors_as(arch), patched, _RunOperatorBodies():
        yield


class _RunOperatorBodies(TorchDispatchMode):
    """Runs the bodies of our custom operators in place of their fake implementations.

    A size that depends on data gets any value: no constraint of the kernels depends on one.
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
