"""Rotary position embedding (arXiv 2104.09864) with the context-extension scalings of rope.py."""

# B batch, T tokens, H heads, K head width, P pairs of a head's rotated part

import math

import torch
from torch import Tensor

from ..kernels.rows import op as rows
from ..search_space.blocks.rope import Rope, RopeScaling
from .body import Pass, RotaryKey


def apply_rope(x_BTHK: Tensor, rope: Rope, dims: int, run: Pass) -> Tensor:
    """The first `dims` dimensions of each head rotated by the positions of the pass."""
    cos_BTP, sin_BTP = rotary_tables(
        rope, run, rotated=dims, head_dim=x_BTHK.shape[-1], dtype=x_BTHK.dtype
    )
    width = 2 * cos_BTP.shape[-1]
    return rows.rope(x_BTHK, cos_BTP, sin_BTP, rotated=width, interleaved=rope.interleaved)


def rotary_tables(
    rope: Rope,
    run: Pass,
    *,
    rotated: int,
    head_dim: int,
    dtype: torch.dtype,
    attention_factor: bool = True,
) -> tuple[Tensor, Tensor]:
    """(cos_BTP, sin_BTP) at the positions of a pass, computed once per pass.

    They are at least float32 and rotate the first 2 P dimensions of a head whose activations have
    `dtype`.
    """
    fp32 = torch.promote_types(dtype, torch.float32)
    key = RotaryKey(rope, rotated, head_dim, fp32, attention_factor)
    if key not in run.rotary_tables:
        run.rotary_tables[key] = tables_at(
            rope,
            run.positions_BT,
            rotated=rotated,
            head_dim=head_dim,
            dtype=fp32,
            attention_factor=attention_factor,
        )
    return run.rotary_tables[key]


def tables_at(
    rope: Rope,
    positions_BT: Tensor,
    *,
    rotated: int,
    head_dim: int,
    dtype: torch.dtype,
    attention_factor: bool = True,
) -> tuple[Tensor, Tensor]:
    """(cos_BTP, sin_BTP) at given positions; without `attention_factor` a pure rotation."""
    frequency_P, factor = frequencies(rope, rotated, head_dim)
    size = factor if attention_factor else 1.0
    angle_BTP = positions_BT[..., None].double() * frequency_P.to(positions_BT.device)
    return (angle_BTP.cos() * size).to(dtype), (angle_BTP.sin() * size).to(dtype)


def frequencies(rope: Rope, rotated: int, head_dim: int) -> tuple[Tensor, float]:
    """(frequency_P in radians per token, the attention factor on both tables) of a scaling.

    The formulas of transformers, modeling_rope_utils.py. Where they depend on the length of the
    text (`dynamic`, `longrope`), the length is the training context, so that the rotation of a
    cached token never changes.
    """
    pair_P = torch.arange(rotated // 2, dtype=torch.float64)
    plain_P = rope.theta ** (-2 * pair_P / rotated)
    scaling = rope.scaling
    match scaling:
        case None:
            return plain_P, 1.0
        case RopeScaling(type="linear"):
            return plain_P / scaling.factor, 1.0
        case RopeScaling(type="dynamic"):
            theta = rope.theta * (scaling.alpha or 1.0) ** (rotated / (rotated - 2))
            return theta ** (-2 * pair_P / rotated), 1.0
        case RopeScaling(type="yarn"):
            return _yarn(scaling, rope.theta, rotated, plain_P)
        case RopeScaling(type="llama3"):
            return _llama3(scaling, plain_P), 1.0
        case RopeScaling(type="longrope"):
            factor_P = torch.tensor(scaling.short_factor or (1.0,), dtype=torch.float64)
            return plain_P / factor_P, _longrope_factor(scaling)
        case RopeScaling(type="proportional"):  # pairs of the whole head, most of frequency 0
            whole_P = torch.zeros(head_dim // 2, dtype=torch.float64)
            whole_P[: len(pair_P)] = rope.theta ** (-2 * pair_P / head_dim)
            return whole_P / scaling.factor, 1.0
    raise AssertionError(f"validated by the record, got {scaling}")


def _yarn(
    scaling: RopeScaling, theta: float, rotated: int, plain_P: Tensor
) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071, section 3.4): fast pairs are kept, slow ones interpolated, with a
    linear ramp between."""
    context = scaling.original_context or 4096

    def pair_of(rotations: float) -> float:
        return rotated * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    pair_P = torch.arange(len(plain_P), dtype=torch.float64)
    slow_P = ((pair_P - low) / max(high - low, 1e-3)).clamp(0, 1)
    mixed_P = plain_P / scaling.factor * slow_P + plain_P * (1 - slow_P)
    if scaling.mscale and scaling.mscale_all_dim:
        factor = _mscale(scaling.factor, scaling.mscale) / _mscale(
            scaling.factor, scaling.mscale_all_dim
        )
    else:
        factor = _mscale(scaling.factor, 1.0)
    return mixed_P, factor


def softmax_scale_factor(rope: Rope | None) -> float:
    """Factor on the softmax scale under YaRN with `mscale_all_dim` (DeepSeek-V2), else 1."""
    scaling = rope.scaling if rope else None
    if scaling is None or not scaling.mscale_all_dim:
        return 1.0
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(scaling: RopeScaling, plain_P: Tensor) -> Tensor:
    """Llama 3.1: wavelengths above `original_context / low_freq_factor` grow by `factor`."""
    context = scaling.original_context or 8192
    turns_P = context * plain_P / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:
        kept_P = (turns_P > high).double()
    else:
        kept_P = ((turns_P - low) / (high - low)).clamp(0, 1)
    return plain_P * kept_P + plain_P / scaling.factor * (1 - kept_P)


def _longrope_factor(scaling: RopeScaling) -> float:
    if scaling.mscale is not None:
        return scaling.mscale
    if scaling.factor <= 1 or not scaling.original_context:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
