"""Operator calls as runnable functions: this package's kernels and torch's matrix products."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...builders.precision import has_fp8
from ...kernels.attention import op as attention
from ...kernels.attention.cache import allocate
from ...kernels.experts import op as experts
from ...kernels.recurrent import op as recurrent
from ...kernels.rows import op as rows
from ...kernels.scaled import op as scaled
from ...search_space.operators import (
    AttentionDecode,
    AttentionPrefill,
    ChannelScan,
    Conv,
    ConvStep,
    Experts,
    Gemm,
    MLADecode,
    MLAPrefill,
    Operator,
    RecurrentStep,
    Rows,
    Scan,
)

Run = Callable[[], object]
KV = {"bf16": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
EPS = 1e-6


class NotRunnable(ValueError):
    """No kernel of this package runs the call on the device."""


def run_of(call: Operator, device: torch.device) -> Run:
    """A function that runs the call on random inputs, in bfloat16 on a GPU and float32 on a CPU.

    Raises NotRunnable.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    new = partial(torch.randn, device=device, dtype=dtype)
    wide = partial(torch.randn, device=device, dtype=torch.float32)
    match call:
        case Gemm(weights="bf16"):
            return partial(torch.mm, new(call.m, call.k), new(call.n, call.k).T)
        case Gemm(weights="fp8") if has_fp8(device):
            weight = new(call.n, call.k)
            return partial(scaled.scaled_linear, new(call.m, call.k), weight, "rowwise")
        case AttentionPrefill() | MLAPrefill():
            return _prefill(call, new)
        case AttentionDecode() | MLADecode():
            return _decode(call, new, dtype, device)
        case Scan() if call.writes == 1:
            keys = new(call.batch, call.tokens, call.k_heads, call.k_dim)
            values = new(call.batch, call.tokens, call.heads, call.v_dim)
            decay = -wide(call.batch, call.tokens, call.heads).abs()
            beta = torch.sigmoid(wide(*decay.shape)) if call.delta else None
            q = F.normalize(keys, dim=-1)
            return partial(recurrent.linear_recurrence, q, q, values, decay, beta)
        case RecurrentStep() if call.writes == 1:
            keys = F.normalize(new(call.batch, call.heads, call.k_dim), dim=-1)
            values, decay = (
                new(call.batch, call.heads, call.v_dim),
                -wide(call.batch, call.heads).abs(),
            )
            beta = torch.sigmoid(wide(*decay.shape)) if call.delta else None
            state = wide(call.batch, call.heads, call.k_dim, call.v_dim)
            return partial(recurrent.linear_recurrence_step, keys, keys, values, decay, beta, state)
        case Conv():
            x, weight = new(call.batch, call.tokens, call.channels), new(call.channels, call.width)
            return partial(rows.short_conv, x, weight, activation="silu")
        case ConvStep():
            x, weight = new(call.batch, call.channels), new(call.channels, call.width)
            tail = new(call.batch, call.width - 1, call.channels)
            return partial(rows.short_conv_step, x, tail, weight, activation="silu")
        case ChannelScan() if call.states > 1:
            shape = call.batch, call.tokens, call.channels
            of_states = new(call.batch, call.tokens, call.states)
            A, D = -wide(call.channels, call.states).abs(), wide(call.channels)
            dt = wide(*shape).abs()
            return partial(recurrent.selective_scan, new(*shape), dt, A, of_states, of_states, D)
        case Experts(weights="bf16", matrices=3):
            return _mixture(call, new, device)
        case Rows():
            # a norm reads and writes each element
            x, weight = new(call.rows, max(1, call.elements // 2)), new(max(1, call.elements // 2))
            return partial(rows.rms_norm, x, weight, EPS)
    raise NotRunnable(f"no kernel runs {call}")


def _prefill(call: AttentionPrefill | MLAPrefill, new: Callable[..., Tensor]) -> Run:
    if isinstance(call, AttentionPrefill):
        kv_heads, width, window = call.kv_heads, call.head_dim, call.window
    else:
        kv_heads, width, window = call.heads, call.qk_head_dim, None
    q = new(call.batch, call.tokens, call.heads, width)
    k = new(call.batch, call.tokens, kv_heads, width)
    v = new(call.batch, call.tokens, kv_heads, call.v_head_dim)
    return partial(attention.attend_without_lse, q, k, v, window=window)


def _decode(
    call: AttentionDecode | MLADecode,
    new: Callable[..., Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Run:
    if isinstance(call, MLADecode):
        k_dim, v_dim, kv_heads = (
            call.kv_lora_rank + call.qk_rope_head_dim,
            call.kv_lora_rank,
            1,
        )
    else:
        k_dim, v_dim, kv_heads = call.head_dim, call.v_head_dim, call.kv_heads
    stored = KV.get(call.kv)
    if call.kv not in KV or (stored is not None and device.type != "cuda"):
        raise NotRunnable(f"no cache of {call.kv} on {device.type}")
    cache = allocate(
        batch=call.batch,
        tokens=call.context,
        kv_heads=kv_heads,
        k_dim=k_dim,
        v_dim=v_dim,
        value_in_key=isinstance(call, MLADecode),
        dtype=stored or dtype,
        device=device,
    )
    cache.lengths_B.fill_(call.context)
    return partial(attention.attend_cached, new(call.batch, 1, call.heads, k_dim), cache)


def _mixture(call: Experts, new: Callable[..., Tensor], device: torch.device) -> Run:
    scores = torch.rand(call.rows, call.n_experts, device=device)
    chosen = scores.topk(call.top_k).indices
    weights = torch.full((call.rows, call.top_k), 1 / call.top_k, device=device)
    inner = call.n_experts, call.d_expert, call.width
    down = new(call.n_experts, call.width, call.d_expert)
    x = new(call.rows, call.width)
    return partial(experts.mixture, x, chosen, weights, new(*inner), new(*inner), down, "silu")
