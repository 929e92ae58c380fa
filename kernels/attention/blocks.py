"""Attention over listed blocks of keys: launches of its kernels, and the custom operator."""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width,
# N blocks per token, J blocks of keys, L = T * N blocks listed by all tokens

from typing import Any

import torch
import triton
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, run
from ..requirements import require
from .arguments import (
    SMALLEST_TILE,
    inputs,
    require_heads,
    require_scores,
    score_arguments,
    segment_bounds,
    tile_width,
)
from .blocks_backward import blocks_backward_keys, blocks_backward_queries
from .blocks_forward import blocks_forward
from .configs import config_for
from .dense import delta_launch

LARGEST_GROUP = 32  # query heads of one key/value head: rows of the smallest tile in configs.py


def _inputs(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    start_BT: Tensor | None,
    block: int,
    scale: float,
) -> dict[str, Any]:
    return {
        **inputs(q_BTHK, k_BTGK, v_BTGV),
        "start_ptr": start_BT,
        "factor": score_arguments(scale, None)["factor"],
        "USE_SEGMENT_IDS": start_BT is not None,
        "BLOCK": block,
    }


def forward_launch(
    arch: str,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    start_BT: Tensor | None,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    block: int,
    scale: float,
) -> Launch:
    """Launch of `blocks_forward`."""
    (B, T, G, K), V = k_BTGK.shape, v_BTGV.shape[-1]
    config = config_for(arch, "blocks_forward", q_BTHK.dtype, K, V)
    group = q_BTHK.shape[2] // G
    return Launch(
        kernel=blocks_forward,
        grid=(T, G, B),
        arguments={
            **_inputs(q_BTHK, k_BTGK, v_BTGV, start_BT, block, scale),
            "blocks_ptr": blocks_BGTN,
            "o_ptr": o_BTHV,
            "lse_ptr": lse_BHT,
            "num_listed": blocks_BGTN.shape[-1],
            "M": tile_width(group),
            "N": min(block, config.tiles["N"]),
        },
        warps=config.warps,
        stages=config.stages,
    )


def queries_launch(
    arch: str,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    start_BT: Tensor | None,
    do_BTHV: Tensor,
    lse_BHT: Tensor,
    delta_BHT: Tensor,
    dq_BTHK: Tensor,
    block: int,
    scale: float,
) -> Launch:
    """Launch of `blocks_backward_queries`."""
    (B, T, G, K), V = k_BTGK.shape, v_BTGV.shape[-1]
    config = config_for(arch, "blocks_backward_queries", q_BTHK.dtype, K, V)
    group = q_BTHK.shape[2] // G
    return Launch(
        kernel=blocks_backward_queries,
        grid=(T, G, B),
        arguments={
            **_inputs(q_BTHK, k_BTGK, v_BTGV, start_BT, block, scale),
            "blocks_ptr": blocks_BGTN,
            "do_ptr": do_BTHV,
            "lse_ptr": lse_BHT,
            "delta_ptr": delta_BHT,
            "dq_ptr": dq_BTHK,
            "num_listed": blocks_BGTN.shape[-1],
            "scale": scale,
            "M": tile_width(group),
            "N": min(block, config.tiles["N"]),
        },
        warps=config.warps,
        stages=config.stages,
    )


def keys_launch(
    arch: str,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    query_index_BGL: Tensor,
    offset_BGJ: Tensor,
    start_BT: Tensor | None,
    do_BTHV: Tensor,
    lse_BHT: Tensor,
    delta_BHT: Tensor,
    dk_BTGK: Tensor,
    dv_BTGV: Tensor,
    block: int,
    scale: float,
) -> Launch:
    """Launch of `blocks_backward_keys`."""
    (B, T, G, K), V = k_BTGK.shape, v_BTGV.shape[-1]
    config = config_for(arch, "blocks_backward_keys", q_BTHK.dtype, K, V)
    group = q_BTHK.shape[2] // G
    N = min(block, config.tiles["N"])
    return Launch(
        kernel=blocks_backward_keys,
        grid=(triton.cdiv(T, N), G, B),
        arguments={
            **_inputs(q_BTHK, k_BTGK, v_BTGV, start_BT, block, scale),
            "query_index_ptr": query_index_BGL,
            "offset_ptr": offset_BGJ,
            "do_ptr": do_BTHV,
            "lse_ptr": lse_BHT,
            "delta_ptr": delta_BHT,
            "dk_ptr": dk_BTGK,
            "dv_ptr": dv_BTGV,
            "num_tokens": T,
            "num_listed": query_index_BGL.shape[-1] // T,
            "num_blocks": offset_BGJ.shape[-1] - 1,
            "scale": scale,
            "HEADS": triton.next_power_of_2(group),
            "M": config.tiles["M"],
            "N": N,
        },
        warps=config.warps,
        stages=config.stages,
    )


@torch.library.custom_op("archfront::attend_blocks", mutates_args=())
def attend_blocks_op(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    start_BT: Tensor | None,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::attend_blocks`, differentiable; the caller checks inputs."""
    o_BTHV, lse_BHT = _attend_blocks_outputs(q_BTHK, k_BTGK, v_BTGV)
    inputs = arch_of(q_BTHK.device), q_BTHK, k_BTGK, v_BTGV, blocks_BGTN, start_BT
    run(forward_launch(*inputs, o_BTHV, lse_BHT, block, scale), q_BTHK)
    return o_BTHV, lse_BHT


@attend_blocks_op.register_fake
def _attend_blocks_outputs(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    o_BTHV = q_BTHK.new_empty(B, T, H, v_BTGV.shape[-1])
    return o_BTHV, q_BTHK.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("archfront::attend_blocks_backward", mutates_args=())
def attend_blocks_backward_op(
    do_BTHV: Tensor,
    dlse_BHT: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    start_BT: Tensor | None,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_blocks_op`."""
    arch = arch_of(q_BTHK.device)
    delta_BHT = torch.empty_like(lse_BHT)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_BTHK, k_BTGK, v_BTGV))
    run(delta_launch(arch, o_BTHV, do_BTHV, dlse_BHT, delta_BHT), q_BTHK)
    heads, rows = (arch, q_BTHK, k_BTGK, v_BTGV), (start_BT, do_BTHV, lse_BHT, delta_BHT)
    run(queries_launch(*heads, blocks_BGTN, *rows, dq, block, scale), q_BTHK)
    run(
        keys_launch(*heads, *invert_lists(blocks_BGTN, block), *rows, dk, dv, block, scale),
        q_BTHK,
    )
    return dq, dk, dv


@attend_blocks_backward_op.register_fake
def _attend_blocks_gradients(
    do_BTHV: Tensor,
    dlse_BHT: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_BTHK, k_BTGK, v_BTGV))
    return dq, dk, dv


def invert_lists(blocks_BGTN: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(query_index_BGL, offset_BGJ): the inverse of the lists, by a sort; int32.

    Block j is listed by the tokens query_index[offset[j] : offset[j + 1]].
    """
    T, N = blocks_BGTN.shape[2:]
    num_blocks = -(-T // block)
    listed_BGL = blocks_BGTN.flatten(2)
    listed_BGL = listed_BGL.masked_fill(listed_BGL < 0, num_blocks)
    sorted_BGL, order_BGL = listed_BGL.sort(stable=True)
    edges = torch.arange(num_blocks + 1, dtype=torch.int32, device=blocks_BGTN.device)
    edges_BGJ = edges.expand(*blocks_BGTN.shape[:2], -1).contiguous()
    offset_BGJ = torch.searchsorted(sorted_BGL, edges_BGJ, out_int32=True)
    return (order_BGL // N).int(), offset_BGJ


def _save_attend_blocks(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.block, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward_attend_blocks(
    ctx: Any, do_BTHV: Tensor, dlse_BHT: Tensor
) -> tuple[Tensor | None, ...]:
    # autograd may pass an expanded gradient; the kernels' are contiguous
    gradients = attend_blocks_backward_op(
        do_BTHV.contiguous(), dlse_BHT.contiguous(), *ctx.saved_tensors, ctx.block, ctx.scale
    )
    return *gradients, None, None, None, None


attend_blocks_op.register_autograd(_backward_attend_blocks, setup_context=_save_attend_blocks)


def attend_blocks(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    blocks_BGTN: Tensor,
    *,
    block: int,
    scale: float,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.attend_blocks`. Raises Unsupported."""
    require_heads(q_BTHK, k_BTGK, v_BTGV, segment_ids)
    require_scores(scale, None)
    (B, T, H, _), G = q_BTHK.shape, k_BTGK.shape[2]
    require(
        H // G <= LARGEST_GROUP,
        f"at most {LARGEST_GROUP} query heads may share a key/value head",
        heads=H,
        kv_heads=G,
    )
    require(
        block >= SMALLEST_TILE and block.bit_count() == 1,
        f"block must be a power of two >= {SMALLEST_TILE}",
        block=block,
    )
    require(
        tuple(blocks_BGTN.shape[:3]) == (B, G, T)
        and blocks_BGTN.dim() == 4
        and (blocks_BGTN.dtype, blocks_BGTN.device) == (torch.int32, q_BTHK.device),
        f"blocks must be [{B}, {G}, {T}, N] torch.int32 on {q_BTHK.device}",
        shape=tuple(blocks_BGTN.shape),
        dtype=blocks_BGTN.dtype,
        device=blocks_BGTN.device,
    )
    start_BT = None if segment_ids is None else segment_bounds(segment_ids)[0]
    return attend_blocks_op(
        q_BTHK, k_BTGK, v_BTGV, blocks_BGTN.contiguous(), start_BT, block, scale
    )
