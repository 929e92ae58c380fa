"""Attention over a list of keys per query: the kernel's launch and the differentiable operator."""

# B batch, T queries, C keys, H query heads, K key width, V value width, N listed keys per query

from typing import Any

import torch
import triton
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require, require_float
from .arguments import require_scores, score_arguments, tile_width
from .configs import config_for
from .eager import selected_gradients
from .selected_forward import selected_forward


def forward_launch(
    arch: str,
    q_BTHK: Tensor,
    k_BCK: Tensor,
    index_BTN: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    scale: float,
) -> Launch:
    """Launch of `selected_forward`: one program per query and tile of heads."""
    (B, T, H, K), V = q_BTHK.shape, o_BTHV.shape[-1]
    config = config_for(arch, "selected_forward", q_BTHK.dtype, K, V)
    M = min(config.tiles["M"], tile_width(H))
    return Launch(
        kernel=selected_forward,
        grid=(T, triton.cdiv(H, M), B),
        arguments={
            "q_ptr": q_BTHK,
            "k_ptr": k_BCK,
            "index_ptr": index_BTN,
            "o_ptr": o_BTHV,
            "lse_ptr": lse_BHT,
            "q_batch": q_BTHK.stride(0),
            "q_token": q_BTHK.stride(1),
            "q_head": q_BTHK.stride(2),
            "k_batch": k_BCK.stride(0),
            "k_token": k_BCK.stride(1),
            "num_heads": H,
            "num_listed": index_BTN.shape[-1],
            "factor": score_arguments(scale, None)["factor"],
            "K": K,
            "K_REST": tile_width(K - V) if K > V else 0,
            "V": V,
            "V_TILE": tile_width(V),
            "M": M,
            "N": config.tiles["N"],
        },
        warps=config.warps,
        stages=config.stages,
    )


@torch.library.custom_op("archfront::attend_selected", mutates_args=())
def attend_selected_op(
    q_BTHK: Tensor, k_BCK: Tensor, index_BTN: Tensor, v_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::attend_selected`, differentiable; the caller checks inputs."""
    o_BTHV, lse_BHT = _attend_selected_outputs(q_BTHK, k_BCK, index_BTN, v_dim, scale)
    arch = arch_of(q_BTHK.device)
    run(forward_launch(arch, q_BTHK, k_BCK, index_BTN, o_BTHV, lse_BHT, scale), q_BTHK)
    return o_BTHV, lse_BHT


@attend_selected_op.register_fake
def _attend_selected_outputs(
    q_BTHK: Tensor, k_BCK: Tensor, index_BTN: Tensor, v_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    o_BTHV = q_BTHK.new_empty(B, T, H, v_dim)
    return o_BTHV, q_BTHK.new_empty(B, H, T, dtype=torch.float32)


def _save_attend_selected(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BTHK, k_BCK, index_BTN, _, ctx.scale = inputs
    ctx.save_for_backward(q_BTHK, k_BCK, index_BTN, *output)


def _backward_attend_selected(
    ctx: Any, do_BTHV: Tensor, dlse_BHT: Tensor
) -> tuple[Tensor | None, ...]:
    q, k, index, o, lse = ctx.saved_tensors
    gradients = selected_gradients(q, k, index, o, lse, do_BTHV, dlse_BHT, ctx.scale)
    return *gradients, None, None, None


attend_selected_op.register_autograd(_backward_attend_selected, setup_context=_save_attend_selected)


def attend_selected(
    q_BTHK: Tensor, k_BCK: Tensor, index_BTN: Tensor, *, v_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.attend_selected`; its gradients are products in PyTorch.

    Raises Unsupported.
    """
    require_device(q_BTHK)
    require_float(q_BTHK, "q")
    require_scores(scale, None)
    (B, T, _, K), C = q_BTHK.shape, k_BCK.shape[1]
    require(
        tuple(k_BCK.shape) == (B, C, K)
        and (k_BCK.dtype, k_BCK.device) == (q_BTHK.dtype, q_BTHK.device),
        f"k must be [{B}, C, {K}] {q_BTHK.dtype} on {q_BTHK.device}",
        shape=tuple(k_BCK.shape),
        dtype=k_BCK.dtype,
        device=k_BCK.device,
    )
    require(
        tuple(index_BTN.shape[:2]) == (B, T)
        and index_BTN.dim() == 3
        and (index_BTN.dtype, index_BTN.device) == (torch.int32, q_BTHK.device),
        f"index must be [{B}, {T}, N] torch.int32 on {q_BTHK.device}",
        shape=tuple(index_BTN.shape),
        dtype=index_BTN.dtype,
        device=index_BTN.device,
    )
    require(1 <= v_dim <= K, "v_dim must be between 1 and the key width", v_dim=v_dim, K=K)
    for name, x in (("q", q_BTHK), ("k", k_BCK)):
        require(x.stride(-1) == 1, f"the last dimension of {name} must be contiguous")
    return attend_selected_op(q_BTHK, k_BCK, index_BTN.contiguous(), v_dim, scale)
