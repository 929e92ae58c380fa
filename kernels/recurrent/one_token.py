"""One-token steps of the recurrences for decoding (Triton); defined in reference.py."""

# B batch, G key heads, H value heads, K key width, V value width

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import require
from .configs import WIDEST_KEY, config_for
from .requirements import require_rows, require_short, require_whole

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def linear_recurrence_step_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    decay_ptr,
    beta_ptr,
    S_ptr,
    o_ptr,
    q_stride,
    k_stride,
    v_stride,
    decay_stride,
    beta_stride,
    heads,
    scale,
    USE_SCALAR_DECAY: tl.constexpr,
    USE_CHANNEL_DECAY: tl.constexpr,
    USE_DELTA_RULE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Linear recurrence, one token: S <- e^g S; v' = v, or for the delta rule beta (v - S^T k);
    S <- S + k v'^T; o = scale S^T q.

    A program takes BV values of one head. Bytes per head, s per element of the state: 2 s K V.
    """
    head = tl.program_id(0).to(tl.int64)
    b = head // heads
    h = (head % heads).to(tl.int32)
    d = tl.arange(0, BK)
    e = tl.program_id(1) * BV + tl.arange(0, BV)
    at = d[:, None] * V + e[None, :]
    inside = (d[:, None] < K) & (e[None, :] < V)
    S_ptr += head * K * V
    q = tl.load(q_ptr + b * q_stride + h // R * K + d, mask=d < K, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + b * k_stride + h // R * K + d, mask=d < K, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + b * v_stride + h * V + e, mask=e < V, other=0.0).to(tl.float32)
    S = tl.load(S_ptr + at, mask=inside, other=0.0).to(tl.float32)

    if USE_SCALAR_DECAY:
        S *= tl.exp2(tl.load(decay_ptr + b * decay_stride + h).to(tl.float32) * LOG2_E)
    if USE_CHANNEL_DECAY:
        g = tl.load(decay_ptr + b * decay_stride + h * K + d, mask=d < K, other=0.0).to(tl.float32)
        S *= tl.exp2(g * LOG2_E)[:, None]
    if USE_DELTA_RULE:
        beta = tl.load(beta_ptr + b * beta_stride + h).to(tl.float32)
        v = beta * (v - tl.sum(k[:, None] * S, 0))
    S += k[:, None] * v[None, :]
    o = scale * tl.sum(q[:, None] * S, 0)
    tl.store(S_ptr + at, S.to(S_ptr.dtype.element_ty), mask=inside)
    tl.store(o_ptr + head * V + e, o.to(o_ptr.dtype.element_ty), mask=e < V)


@triton.jit
def rwkv7_recurrence_step_kernel(
    r_ptr,
    w_ptr,
    k_ptr,
    v_ptr,
    a_ptr,
    b_ptr,
    S_ptr,
    o_ptr,
    r_stride,
    w_stride,
    k_stride,
    v_stride,
    a_stride,
    b_stride,
    heads,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """RWKV-7, one token: S <- e^w S + b (a^T S) + k v^T; o = S^T r.

    A program takes BV values of one head. Bytes per head, s per element of the state: 2 s K V.
    """
    head = tl.program_id(0).to(tl.int64)
    batch = head // heads
    h = (head % heads).to(tl.int32)
    d = tl.arange(0, BK)
    e = tl.program_id(1) * BV + tl.arange(0, BV)
    at = d[:, None] * V + e[None, :]
    inside = (d[:, None] < K) & (e[None, :] < V)
    key = h * K + d
    S_ptr += head * K * V
    r = tl.load(r_ptr + batch * r_stride + key, mask=d < K, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + batch * w_stride + key, mask=d < K, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + batch * k_stride + key, mask=d < K, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + batch * a_stride + key, mask=d < K, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + batch * b_stride + key, mask=d < K, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + batch * v_stride + h * V + e, mask=e < V, other=0.0).to(tl.float32)
    S = tl.load(S_ptr + at, mask=inside, other=0.0).to(tl.float32)

    known = tl.sum(a[:, None] * S, 0)
    S *= tl.exp2(w * LOG2_E)[:, None]
    S += b[:, None] * known[None, :] + k[:, None] * v[None, :]
    o = tl.sum(r[:, None] * S, 0)
    tl.store(S_ptr + at, S.to(S_ptr.dtype.element_ty), mask=inside)
    tl.store(o_ptr + head * V + e, o.to(o_ptr.dtype.element_ty), mask=e < V)


def linear_recurrence_step_launch(
    arch: str,
    q_BGK: Tensor,
    k_BGK: Tensor,
    v_BHV: Tensor,
    decay: Tensor | None,
    beta_BH: Tensor | None,
    state_BHKV: Tensor,
    o_BHV: Tensor,
    scale: float,
) -> Launch:
    """Launch of `linear_recurrence_step_kernel`."""
    (B, H, V), (G, K) = v_BHV.shape, q_BGK.shape[1:]
    config = config_for(arch, "step", "head", v_BHV.dtype, K, V)
    by_batch = decay is not None and decay.dim() > 1
    return Launch(
        kernel=linear_recurrence_step_kernel,
        grid=(B * H, triton.cdiv(V, config.tiles["BV"])),
        arguments={
            "q_ptr": q_BGK,
            "k_ptr": k_BGK,
            "v_ptr": v_BHV,
            "decay_ptr": decay,
            "beta_ptr": beta_BH,
            "S_ptr": state_BHKV,
            "o_ptr": o_BHV,
            "q_stride": q_BGK.stride(0),
            "k_stride": k_BGK.stride(0),
            "v_stride": v_BHV.stride(0),
            "decay_stride": decay.stride(0) if decay is not None and by_batch else 0,
            "beta_stride": 0 if beta_BH is None else beta_BH.stride(0),
            "heads": H,
            "scale": scale,
            "USE_SCALAR_DECAY": decay is not None and decay.dim() < 3,
            "USE_CHANNEL_DECAY": decay is not None and decay.dim() == 3,
            "USE_DELTA_RULE": beta_BH is not None,
            "K": K,
            "V": V,
            "R": H // G,
            **config.tiles,
        },
        warps=config.warps,
    )


def rwkv7_recurrence_step_launch(
    arch: str,
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
    o_BHV: Tensor,
) -> Launch:
    """Launch of `rwkv7_recurrence_step_kernel`."""
    (B, H, V), K = v_BHV.shape, r_BHK.shape[2]
    config = config_for(arch, "step", "rwkv7", v_BHV.dtype, K, V)
    inputs = {"r": r_BHK, "w": w_BHK, "k": k_BHK, "v": v_BHV, "a": a_BHK, "b": b_BHK}
    return Launch(
        kernel=rwkv7_recurrence_step_kernel,
        grid=(B * H, triton.cdiv(V, config.tiles["BV"])),
        arguments={
            **{f"{name}_ptr": x for name, x in inputs.items()},
            **{f"{name}_stride": x.stride(0) for name, x in inputs.items()},
            "S_ptr": state_BHKV,
            "o_ptr": o_BHV,
            "heads": H,
            "K": K,
            "V": V,
            **config.tiles,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::linear_recurrence_step", mutates_args=("state_BHKV",))
def linear_recurrence_step_op(
    q_BGK: Tensor,
    k_BGK: Tensor,
    v_BHV: Tensor,
    decay: Tensor | None,
    beta_BH: Tensor | None,
    state_BHKV: Tensor,
    scale: float,
) -> Tensor:
    """Custom operator `archfront::linear_recurrence_step`; the caller checks inputs."""
    o_BHV = v_BHV.new_empty(v_BHV.shape)
    inputs = (q_BGK, k_BGK, v_BHV, decay, beta_BH, state_BHKV)
    run(linear_recurrence_step_launch(arch_of(v_BHV.device), *inputs, o_BHV, scale), v_BHV)
    return o_BHV


@linear_recurrence_step_op.register_fake
def _fake_step(
    q_BGK: Tensor,
    k_BGK: Tensor,
    v_BHV: Tensor,
    decay: Tensor | None,
    beta_BH: Tensor | None,
    state_BHKV: Tensor,
    scale: float,
) -> Tensor:
    return v_BHV.new_empty(v_BHV.shape)


@torch.library.custom_op("archfront::rwkv7_recurrence_step", mutates_args=("state_BHKV",))
def rwkv7_recurrence_step_op(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
) -> Tensor:
    """Custom operator `archfront::rwkv7_recurrence_step`; the caller checks inputs."""
    o_BHV = v_BHV.new_empty(v_BHV.shape)
    inputs = (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK, state_BHKV)
    run(rwkv7_recurrence_step_launch(arch_of(v_BHV.device), *inputs, o_BHV), v_BHV)
    return o_BHV


@rwkv7_recurrence_step_op.register_fake
def _fake_rwkv7_step(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
) -> Tensor:
    return v_BHV.new_empty(v_BHV.shape)


def linear_recurrence_step(
    q_BGK: Tensor,
    k_BGK: Tensor,
    v_BHV: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    state_BHKV: Tensor,
    *,
    scale: float,
) -> Tensor:
    """Triton implementation of `op.linear_recurrence_step`. Raises Unsupported."""
    B, H, K = _require(q_BGK, v_BHV, state_BHKV)
    G = q_BGK.shape[1]
    require(H % G == 0, "the key heads must divide the value heads", G=G, H=H)
    for name, x in {"q": q_BGK, "k": k_BGK}.items():
        require_rows(name, x, (B, G, K), v_BHV, 1)
    if decay is not None:
        shapes = ((H,), (B, H), (B, H, K))
        require(decay.shape in shapes, f"decay must have a shape of {shapes}", decay=decay.shape)
        require_rows("decay", decay, tuple(decay.shape), v_BHV, 1)
    if beta is not None:
        require_rows("beta", beta, (B, H), v_BHV, 1)
    return linear_recurrence_step_op(q_BGK, k_BGK, v_BHV, decay, beta, state_BHKV, scale)


def rwkv7_recurrence_step(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
) -> Tensor:
    """Triton implementation of `op.rwkv7_recurrence_step`. Raises Unsupported."""
    shape = _require(r_BHK, v_BHV, state_BHKV)
    for name, x in {"r": r_BHK, "w": w_BHK, "k": k_BHK, "a": a_BHK, "b": b_BHK}.items():
        require_rows(name, x, shape, v_BHV, 1)
    return rwkv7_recurrence_step_op(r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK, state_BHKV)


def _require(q_BGK: Tensor, v_BHV: Tensor, state_BHKV: Tensor) -> tuple[int, int, int]:
    """Check what both steps require of q, v and state; return B, H and K."""
    require_device(v_BHV)
    constraint = "q and v must be of shape [B, heads, width]"
    require(v_BHV.dim() == q_BGK.dim() == 3, constraint, q=q_BGK.shape, v=v_BHV.shape)
    (B, H, V), K = v_BHV.shape, q_BGK.shape[2]
    require(K <= WIDEST_KEY, f"keys must be at most {WIDEST_KEY} wide", K=K)
    require_short("v", v_BHV)
    require_rows("v", v_BHV, (B, H, V), v_BHV, 1)
    require_whole("state", state_BHKV, (B, H, K, V), (torch.float32, torch.bfloat16), v_BHV)
    return B, H, K
