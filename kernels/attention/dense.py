"""Dense attention over sequences: launches of its kernels, and the custom operator."""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width

from typing import Any

import torch
import triton
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, run
from .arguments import ScoreRules, inputs, require_heads, require_scores, segment_bounds
from .backward import backward_delta, backward_keys, backward_queries
from .configs import config_for
from .forward import forward

WIDEST_TOGETHER = (
    128  # dk and dv in the registers of one program; wider heads take a launch for each
)


def forward_launch(
    arch: str,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    rule: ScoreRules,
) -> Launch:
    """Launch of `forward`."""
    (B, T, H, K), V = q_BTHK.shape, v_BTGV.shape[-1]
    config = config_for(arch, "forward", q_BTHK.dtype, K, V, extra_masking=rule.extra_masking)
    return Launch(
        kernel=forward,
        grid=(triton.cdiv(T, config.tiles["M"]), H, B),
        arguments={
            **inputs(q_BTHK, k_BTGK, v_BTGV),
            "o_ptr": o_BTHV,
            "lse_ptr": lse_BHT,
            "num_tokens": T,
            **rule.arguments,
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )


def delta_launch(
    arch: str, o_BTHV: Tensor, do_BTHV: Tensor, dlse_BHT: Tensor, delta_BHT: Tensor
) -> Launch:
    """Launch of `backward_delta`."""
    B, T, H, V = o_BTHV.shape
    config = config_for(arch, "backward_delta", o_BTHV.dtype, V, V)
    return Launch(
        kernel=backward_delta,
        grid=(triton.cdiv(T, config.tiles["M"]), H, B),
        arguments={
            "o_ptr": o_BTHV,
            "do_ptr": do_BTHV,
            "dlse_ptr": dlse_BHT,
            "delta_ptr": delta_BHT,
            "num_tokens": T,
            "V": V,
            "V_TILE": triton.next_power_of_2(V),
            **config.tiles,
        },
        warps=config.warps,
    )


def keys_launches(
    arch: str,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    do_BTHV: Tensor,
    lse_BHT: Tensor,
    delta_BHT: Tensor,
    dk_BTGK: Tensor,
    dv_BTGV: Tensor,
    rule: ScoreRules,
) -> list[Launch]:
    """Launch of `backward_keys`."""
    (B, T, G, K), V = k_BTGK.shape, v_BTGV.shape[-1]
    config = config_for(arch, "backward_keys", q_BTHK.dtype, K, V, extra_masking=rule.extra_masking)
    arguments = {
        **inputs(q_BTHK, k_BTGK, v_BTGV),
        "do_ptr": do_BTHV,
        "lse_ptr": lse_BHT,
        "delta_ptr": delta_BHT,
        "dk_ptr": dk_BTGK,
        "dv_ptr": dv_BTGV,
        "num_tokens": T,
        **rule.arguments,
        "scale": rule.scale,
        **config.tiles,
    }
    together = max(K, V) <= WIDEST_TOGETHER
    return [
        Launch(
            kernel=backward_keys,
            grid=(triton.cdiv(T, config.tiles["N"]), G, B),
            arguments=arguments | {"DK": dk, "DV": dv},
            warps=config.warps,
            stages=config.stages,
        )
        for dk, dv in ([(True, True)] if together else [(True, False), (False, True)])
    ]


def queries_launch(
    arch: str,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    do_BTHV: Tensor,
    lse_BHT: Tensor,
    delta_BHT: Tensor,
    dq_BTHK: Tensor,
    rule: ScoreRules,
) -> Launch:
    """Launch of `backward_queries`."""
    (B, T, H, K), V = q_BTHK.shape, v_BTGV.shape[-1]
    config = config_for(
        arch, "backward_queries", q_BTHK.dtype, K, V, extra_masking=rule.extra_masking
    )
    return Launch(
        kernel=backward_queries,
        grid=(triton.cdiv(T, config.tiles["M"]), H, B),
        arguments={
            **inputs(q_BTHK, k_BTGK, v_BTGV),
            "do_ptr": do_BTHV,
            "lse_ptr": lse_BHT,
            "delta_ptr": delta_BHT,
            "dq_ptr": dq_BTHK,
            "num_tokens": T,
            **rule.arguments,
            "scale": rule.scale,
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )


@torch.library.custom_op("archfront::attend", mutates_args=())
def attend_op(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    start_BT: Tensor | None,
    end_BT: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::attend`, differentiable; the caller checks inputs."""
    o_BTHV, lse_BHT = _attend_outputs(q_BTHK, k_BTGK, v_BTGV)
    rule = ScoreRules(
        start_BT=start_BT, end_BT=end_BT, causal=causal, window=window, scale=scale, softcap=softcap
    )
    arch = arch_of(q_BTHK.device)
    run(forward_launch(arch, q_BTHK, k_BTGK, v_BTGV, o_BTHV, lse_BHT, rule), q_BTHK)
    return o_BTHV, lse_BHT


@attend_op.register_fake
def _attend_outputs(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, *rule: Any
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    o_BTHV = q_BTHK.new_empty(B, T, H, v_BTGV.shape[-1])
    return o_BTHV, q_BTHK.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("archfront::attend_backward", mutates_args=())
def attend_backward_op(
    do_BTHV: Tensor,
    dlse_BHT: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    start_BT: Tensor | None,
    end_BT: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_op`."""
    rule = ScoreRules(
        start_BT=start_BT, end_BT=end_BT, causal=causal, window=window, scale=scale, softcap=softcap
    )
    arch = arch_of(q_BTHK.device)
    delta_BHT = torch.empty_like(lse_BHT)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_BTHK, k_BTGK, v_BTGV))
    run(delta_launch(arch, o_BTHV, do_BTHV, dlse_BHT, delta_BHT), q_BTHK)
    given = arch, q_BTHK, k_BTGK, v_BTGV, do_BTHV, lse_BHT, delta_BHT
    for launch in keys_launches(*given, dk, dv, rule):
        run(launch, q_BTHK)
    run(queries_launch(*given, dq, rule), q_BTHK)
    return dq, dk, dv


@attend_backward_op.register_fake
def _attend_gradients(
    do_BTHV: Tensor,
    dlse_BHT: Tensor,
    o_BTHV: Tensor,
    lse_BHT: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *rule: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_BTHK, k_BTGK, v_BTGV))
    return dq, dk, dv


def _save_attend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.window, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward_attend(ctx: Any, do_BTHV: Tensor, dlse_BHT: Tensor) -> tuple[Tensor | None, ...]:
    # autograd may pass an expanded gradient; the kernels' are contiguous
    gradients = attend_backward_op(
        do_BTHV.contiguous(),
        dlse_BHT.contiguous(),
        *ctx.saved_tensors,
        ctx.causal,
        ctx.window,
        ctx.scale,
        ctx.softcap,
    )
    return *gradients, *[None] * 6


attend_op.register_autograd(_backward_attend, setup_context=_save_attend)


def attend(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.attend`. Raises Unsupported."""
    require_heads(q_BTHK, k_BTGK, v_BTGV, segment_ids)
    require_scores(scale, softcap)
    bounds = (None, None) if segment_ids is None else segment_bounds(segment_ids)
    return attend_op(q_BTHK, k_BTGK, v_BTGV, *bounds, causal, window, scale, softcap)
