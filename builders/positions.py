"""Rotary tables: the angle of each position and pair, for every way of reaching longer contexts."""

# B batch, T tokens, P pairs of a head's rotated part

import math

import torch
from torch import Tensor

from ..search_space.blocks.rope import Rope, RopeScaling
from .body import Pass


def rotation(
    rope: Rope,
    run: Pass,
    *,
    rotated: int,
    head_dim: int,
    dtype: torch.dtype,
    sharpened: bool = True,
) -> tuple[Tensor, Tensor]:
    """(cos_BTP, sin_BTP) at the positions of a pass, for activations of `dtype`; once a pass.

    They rotate the first 2 P dimensions of a head.
    """
    wide = torch.promote_types(dtype, torch.float32)
    key = ("rotation", rope, rotated, head_dim, wide, sharpened)
    if key not in run.left:
        run.left[key] = tables(
            rope,
            run.positions_BT,
            rotated=rotated,
            head_dim=head_dim,
            dtype=wide,
            sharpened=sharpened,
        )
    return run.left[key]


def tables(
    rope: Rope,
    positions_BT: Tensor,
    *,
    rotated: int,
    head_dim: int,
    dtype: torch.dtype,
    sharpened: bool = True,
) -> tuple[Tensor, Tensor]:
    """(cos_BTP, sin_BTP) at any positions; unless `sharpened`, a rotation that can be undone."""
    frequency_P, sharpness = frequencies(rope, rotated, head_dim)
    size = sharpness if sharpened else 1.0
    angle_BTP = positions_BT[..., None].double() * frequency_P.to(positions_BT.device)
    return (angle_BTP.cos() * size).to(dtype), (angle_BTP.sin() * size).to(dtype)


def frequencies(rope: Rope, rotated: int, head_dim: int) -> tuple[Tensor, float]:
    """(radians a token of each pair, the factor on both tables), by the scaling's own rule.

    The rules of transformers, modeling_rope_utils.py. What depends on the length of the text at
    hand there (`dynamic`, the short factors of `longrope`) is taken as the context it was trained
    for, so that a token's rotation never changes once it is cached.
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
            return plain_P / factor_P, _longrope_sharpness(scaling)
        case RopeScaling(type="proportional"):  # pairs of the whole head, most of them at rest
            whole_P = torch.zeros(head_dim // 2, dtype=torch.float64)
            whole_P[: len(pair_P)] = rope.theta ** (-2 * pair_P / head_dim)
            return whole_P / scaling.factor, 1.0
    raise AssertionError(f"the record lets only known types through, got {scaling}")


def _yarn(
    scaling: RopeScaling, theta: float, rotated: int, plain_P: Tensor
) -> tuple[Tensor, float]:
    """arXiv 2309.00071, section 3.4: fast pairs stay, slow ones are interpolated, a ramp between."""
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
        sharpness = _mscale(scaling.factor, scaling.mscale) / _mscale(
            scaling.factor, scaling.mscale_all_dim
        )
    else:
        sharpness = _mscale(scaling.factor, 1.0)
    return mixed_P, sharpness


def softmax_sharpness(rope: Rope | None) -> float:
    """The factor on the softmax scale that YaRN with `mscale_all_dim` asks for (DeepSeek-V2)."""
    scaling = rope.scaling if rope else None
    if scaling is None or not scaling.mscale_all_dim:
        return 1.0
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(scaling: RopeScaling, plain_P: Tensor) -> Tensor:
    """Wavelengths beyond `original_context / low_freq_factor` are stretched by `factor`."""
    context = scaling.original_context or 8192
    turns_P = context * plain_P / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:
        kept_P = (turns_P > high).double()
    else:
        kept_P = ((turns_P - low) / (high - low)).clamp(0, 1)
    return plain_P * kept_P + plain_P / scaling.factor * (1 - kept_P)


def _longrope_sharpness(scaling: RopeScaling) -> float:
    if scaling.mscale is not None:
        return scaling.mscale
    if scaling.factor <= 1 or not scaling.original_context:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
