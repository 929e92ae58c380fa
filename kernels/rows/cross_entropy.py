"""Cross-entropy of rows of logits, with their gradient (Triton).

Reference: `linear_cross_entropy` in reference.py; loss.py computes the logits in chunks.
"""

# C rows of a chunk, V vocabulary

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require, require_float
from .configs import tile_for
from .reference import IGNORED

IGNORED_TARGET = tl.constexpr(IGNORED)
LOWEST = tl.constexpr(-1e30)  # below any logit, and finite: LOWEST - LOWEST is not NaN


@triton.jit
def final_logit(z, scale, softcap, CAPPED: tl.constexpr):
    """(l, dl/dz) of l = softcap * tanh(scale * z / softcap), without CAPPED of scale * z."""
    l = z * scale
    slope = scale
    if CAPPED:
        tanh = 2.0 * tl.sigmoid(2.0 * l / softcap) - 1.0
        l = softcap * tanh
        slope = scale * (1.0 - tanh * tanh)
    return l, slope


@triton.jit
def cross_entropy(
    logits_ptr,
    target_ptr,
    loss_ptr,
    gradient_ptr,
    vocabulary,
    scale,
    softcap,
    z_loss,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cross-entropy of one row: loss = lse - l_target + z_loss * lse^2, 0 for an ignored target.

    With GRADIENT dz = dl/dz * (e^{l - lse} * (1 + 2 * z_loss * lse) - [v is the target]), which may
    overwrite the logits: only this program reads them, each before it is written.
    A target that is neither ignored nor in the vocabulary gives NaN.
    Bytes per logit: 4, with GRADIENT 8 and the size of the gradient.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    counts = target != IGNORED_TARGET
    logits_ptr += row * vocabulary
    known = (target >= 0) & (target < vocabulary)
    hit = tl.load(logits_ptr + target, mask=known, other=float("nan"))
    hit = final_logit(hit, scale, softcap, CAPPED)[0]

    m = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        v = start + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + v, mask=v < vocabulary, other=0.0)
        l = final_logit(z, scale, softcap, CAPPED)[0]
        l = tl.where(v < vocabulary, l, LOWEST)
        highest = tl.maximum(m, l)
        total = total * tl.exp(m - highest) + tl.where(v < vocabulary, tl.exp(l - highest), 0.0)
        m = highest
    highest = tl.max(m, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(m - highest), 0))
    loss = lse - hit + z_loss * lse * lse
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0))

    if GRADIENT:
        gradient_ptr += row * vocabulary
        for start in range(0, vocabulary, BLOCK):
            v = start + tl.arange(0, BLOCK)
            z = tl.load(logits_ptr + v, mask=v < vocabulary, other=0.0)
            l, slope = final_logit(z, scale, softcap, CAPPED)
            dl = tl.exp(l - lse) * (1.0 + 2.0 * z_loss * lse) - tl.where(v == target, 1.0, 0.0)
            dz = tl.where(counts, slope * dl, 0.0).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + v, dz, mask=v < vocabulary)


def launch(
    arch: str,
    logits_CV: Tensor,
    target_C: Tensor,
    loss_C: Tensor,
    gradient_CV: Tensor | None,
    scale: float,
    softcap: float | None,
    z_loss: float,
) -> Launch:
    """Launch of `cross_entropy`."""
    num_rows, vocabulary = logits_CV.shape
    config = tile_for(arch, "cross_entropy")
    return Launch(
        kernel=cross_entropy,
        grid=(num_rows,),
        arguments={
            "logits_ptr": logits_CV,
            "target_ptr": target_C,
            "loss_ptr": loss_C,
            "gradient_ptr": gradient_CV,
            "vocabulary": vocabulary,
            "scale": scale,
            "softcap": 1.0 if softcap is None else softcap,
            "z_loss": z_loss,
            "CAPPED": softcap is not None,
            "GRADIENT": gradient_CV is not None,
            "BLOCK": config.block,
        },
        warps=config.warps,
    )


def cross_entropy_rows(
    logits_CV: Tensor,
    target_C: Tensor,
    gradient_CV: Tensor | None,
    scale: float,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """Loss per row, float32 [C]; `gradient_CV`, where given, receives the gradient of their sum."""
    loss_C = logits_CV.new_empty(len(target_C))
    operands = logits_CV, target_C, loss_C, gradient_CV
    run(launch(arch_of(logits_CV.device), *operands, scale, softcap, z_loss), logits_CV)
    return loss_C


def require_operands(h: Tensor, weight_VD: Tensor, target: Tensor, bias_V: Tensor | None) -> None:
    """Raise Unsupported unless the kernel takes the hidden states, the head and the targets."""
    require_device(h)
    require_float(h, "h")
    require(
        weight_VD.dim() == 2
        and (weight_VD.shape[1], weight_VD.dtype, weight_VD.device)
        == (h.shape[-1], h.dtype, h.device),
        f"weight must be [vocabulary, {h.shape[-1]}], {h.dtype}, on {h.device}",
        shape=tuple(weight_VD.shape),
        dtype=weight_VD.dtype,
        device=weight_VD.device,
    )
    require(
        (target.shape, target.dtype, target.device) == (h.shape[:-1], torch.int64, h.device),
        f"target must be of shape {tuple(h.shape[:-1])}, int64, on {h.device}",
        shape=tuple(target.shape),
        dtype=target.dtype,
        device=target.device,
    )
    if bias_V is not None:
        require(
            bias_V.shape == weight_VD.shape[:1] and bias_V.device == h.device,
            f"bias must be of shape {tuple(weight_VD.shape[:1])}, on {h.device}",
            shape=tuple(bias_V.shape),
            device=bias_V.device,
        )
