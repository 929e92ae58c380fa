"""Cross-entropy of a linear head over chunks of rows, without the full logits.

Reference: `linear_cross_entropy` in reference.py. The logits of a chunk are overwritten by
their gradient, and the forward already computes the gradients of all inputs: the backward only
scales them. The products are torch's; the rows of logits are the kernel's or torch's.
"""

# M rows, C rows of a chunk, D model width, V vocabulary

from typing import Any

import torch
from torch import Tensor

from ..backend import Backend
from ..requirements import needs_gradient
from . import eager
from .reference import IGNORED

CHUNKS = 16  # a chunk has a sixteenth of the logits,
FEWEST_ROWS = 256  # but no fewer rows, for efficient products,
MOST_LOGITS = 2**28  # and no more than one GiB of logits


def chunk_rows(num_rows: int, vocabulary: int) -> int:
    """Number of rows whose logits are in memory at once."""
    return max(FEWEST_ROWS, min(-(-num_rows // CHUNKS), MOST_LOGITS // vocabulary))


def loss_and_gradients(
    h_MD: Tensor,
    weight_VD: Tensor,
    target_M: Tensor,
    bias_V: Tensor | None,
    scale: float,
    softcap: float | None,
    z_loss: float,
    gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean loss, and its gradients for h, weight and bias; empty where not required."""
    if backend == "triton":
        from .cross_entropy import cross_entropy_rows
    else:
        cross_entropy_rows = eager.cross_entropy_rows
    (num_rows, width), vocabulary, wide = h_MD.shape, len(weight_VD), _wide(h_MD)
    entries = vocabulary if gradient else 0
    share = (target_M != IGNORED).sum().clamp(min=1).to(wide).reciprocal()
    loss_M = h_MD.new_empty(num_rows, dtype=wide)
    dh_MD = h_MD.new_empty(num_rows if gradient else 0, width)
    dweight_VD = weight_VD.new_zeros(entries, width, dtype=wide)
    dbias_V = weight_VD.new_zeros(0 if bias_V is None else entries, dtype=wide)
    step = chunk_rows(num_rows, vocabulary)
    for start in range(0, num_rows, step):
        part = slice(start, start + step)
        logits_CV = _product(h_MD[part], weight_VD.T, wide)
        if bias_V is not None:
            logits_CV += bias_V
        gradient_CV = None
        if gradient:
            short = h_MD.dtype != wide
            gradient_CV = torch.empty_like(logits_CV, dtype=h_MD.dtype) if short else logits_CV
        loss_M[part] = cross_entropy_rows(
            logits_CV, target_M[part], gradient_CV, scale, softcap, z_loss
        )
        if gradient_CV is not None:
            dh_MD[part] = share * _product(gradient_CV, weight_VD, wide)
            _add_product(dweight_VD, gradient_CV.T, h_MD[part])
            if bias_V is not None:
                dbias_V += gradient_CV.sum(0, dtype=wide)
    dweight_VD = _scaled(dweight_VD, share, weight_VD.dtype)
    return share * loss_M.sum(), dh_MD, dweight_VD, share * dbias_V


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b, summed and returned in `wide`: torch.mm takes an out_dtype on CUDA alone."""
    if a.is_cuda and a.dtype != wide:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor rounded once: a factor of no dimension would be rounded to x's dtype first."""
    return torch.mul(x, factor.view(1), out=torch.empty_like(x, dtype=dtype))


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


linear_cross_entropy_op = torch.library.custom_op(
    "archfront::linear_cross_entropy", loss_and_gradients, mutates_args=()
)


@linear_cross_entropy_op.register_fake
def _outputs(
    h_MD: Tensor,
    weight_VD: Tensor,
    target_M: Tensor,
    bias_V: Tensor | None,
    scale: float,
    softcap: float | None,
    z_loss: float,
    gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = h_MD.new_empty((), dtype=_wide(h_MD))
    if not gradient:
        dh_MD, dweight_VD = h_MD.new_empty(0, h_MD.shape[1]), weight_VD.new_empty(0, h_MD.shape[1])
        return loss, dh_MD, dweight_VD, loss.new_empty(0)
    dbias_V = loss.new_empty(0 if bias_V is None else len(bias_V))
    return loss, h_MD.new_empty(h_MD.shape), weight_VD.new_empty(weight_VD.shape), dbias_V


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # the outputs that are gradients get none
    ctx.save_for_backward(*output[1:])
    ctx.biased = inputs[3] is not None


def _backward(ctx: Any, dloss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    dh_MD, dweight_VD, dbias_V = (_scaled(x, dloss, x.dtype) for x in ctx.saved_tensors)
    dbias = dbias_V if ctx.biased else None
    return dh_MD, dweight_VD, None, dbias, None, None, None, None, None


linear_cross_entropy_op.register_autograd(_backward, setup_context=_save)


def linear_cross_entropy(
    h: Tensor,
    weight_VD: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    z_loss: float,
    backend: Backend,
) -> Tensor:
    """Triton implementation of `op.linear_cross_entropy`. Raises Unsupported."""
    if backend == "triton":
        from .cross_entropy import require_operands

        require_operands(h, weight_VD, target, bias)
    gradient = needs_gradient(h, weight_VD, *([] if bias is None else [bias]))
    operands = h.flatten(0, -2), weight_VD, target.flatten(), bias
    return linear_cross_entropy_op(*operands, scale, softcap, z_loss, gradient, backend)[0]
