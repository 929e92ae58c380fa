"""Launches of the recurrent kernels that are compiled for every architecture."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..launch import Launch
from . import channels, chunks, one_token, selective
from .configs import chunk_of

TOKENS = 8192
CHANNELS = (4096, 16)  # of Mamba-1, and states per channel


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes and variant of a call, and the kernels compiled for it."""

    name: str
    G: int
    H: int
    K: int
    V: int
    decay: int  # axes after [B, T]: 0 no decay, 1 per head, 2 per head and channel
    delta: int  # 0, 1 the delta rule, 2 RWKV-7
    kernels: tuple[str, ...]  # those that no shape above covers
    segment_ids: bool = False
    dtype: torch.dtype = torch.bfloat16


SHAPES = (
    Shape(
        name="gated deltanet",
        G=16,
        H=64,
        K=128,
        V=128,
        decay=1,
        delta=1,
        kernels=(
            "head_gate",
            "fwd_intra",
            "fwd_state",
            "bwd_state",
            "bwd_intra",
            "bwd_inputs",
            "step",
        ),
    ),
    Shape(
        name="kda",
        G=32,
        H=32,
        K=128,
        V=128,
        decay=2,
        delta=1,
        kernels=("channel_gate", "fwd_intra", "fwd_state", "bwd_inputs", "step"),
    ),
    Shape(
        name="mamba-2",
        G=1,
        H=128,
        K=128,
        V=64,
        decay=1,
        delta=0,
        kernels=("fwd_state", "bwd_inputs", "step"),
        segment_ids=True,
    ),
    Shape(
        name="gla",
        G=16,
        H=16,
        K=64,
        V=128,
        decay=2,
        delta=0,
        kernels=("fwd_state", "bwd_inputs", "step"),
    ),
    Shape(
        name="olmo hybrid", G=30, H=30, K=96, V=192, decay=1, delta=1, kernels=("fwd_state", "step")
    ),
    Shape(
        name="rwkv-7",
        G=64,
        H=64,
        K=64,
        V=64,
        decay=2,
        delta=2,
        kernels=("fwd_intra", "fwd_state", "bwd_state", "bwd_inputs b", "step"),
    ),
    Shape(
        name="deltanet",
        G=16,
        H=16,
        K=64,
        V=64,
        decay=0,
        delta=1,
        kernels=("fwd_state",),
        dtype=torch.float32,
    ),
)


def launches(arch: str) -> Iterator[tuple[str, str, Launch]]:
    """(kernel, shape, launch): each kernel in each of its variants, at widths of public models."""
    for shape in SHAPES:
        of_shape = _sequence_launches(arch, shape) | {"step": _step_launch(arch, shape)}
        for kernel in shape.kernels:
            yield kernel, f"{shape.name} {shape.K} x {shape.V}", of_shape[kernel]
    for kernel, launch in _channel_launches(arch):
        yield kernel, f"{CHANNELS[0]} x {CHANNELS[1]}", launch


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _sequence_launches(arch: str, shape: Shape) -> dict[str, Launch]:
    G, H, K, V, dtype = shape.G, shape.H, shape.K, shape.V, shape.dtype
    keys, values = _meta(1, TOKENS, G, K, dtype=dtype), _meta(1, TOKENS, H, V, dtype=dtype)
    by_token = _meta(1, TOKENS, H)
    inputs = chunks.Inputs(
        q_BTGK=keys,
        k_BTGK=keys,
        v_BTHV=values,
        decay=(None, by_token, _meta(1, TOKENS, H, K))[shape.decay],
        beta_BTH=by_token if shape.delta == 1 else None,
        e_BTHK=keys if shape.delta == 2 else None,
        b_BTHK=keys if shape.delta == 2 else None,
        initial_BHKV=_meta(1, H, K, V),
        segment_ids_BT=_meta(1, TOKENS, dtype=torch.int32) if shape.segment_ids else None,
        scale=K**-0.5,
        chunk=chunk_of(64, dtype),
    )
    o_BTHV, final_BHKV = chunks.new_outputs(inputs)
    saved = chunks.new_saved(inputs, save=True)
    forward = chunks.forward_launches(arch, inputs, o_BTHV, final_BHKV, saved, save=True)
    out = chunks.new_gradients(arch, inputs)
    backward = chunks.backward_launches(arch, inputs, saved, o_BTHV, final_BHKV, out)
    return forward | backward


def _step_launch(arch: str, shape: Shape) -> Launch:
    B, H, K, V = 64, shape.H, shape.K, shape.V
    keys, values = _meta(B, shape.G, K, dtype=shape.dtype), _meta(B, H, V, dtype=shape.dtype)
    state = _meta(B, H, K, V)
    if shape.delta == 2:
        return one_token.rwkv7_recurrence_step_launch(
            arch, keys, keys, keys, values, keys, keys, state, values
        )
    decay = _meta(B, H) if shape.decay == 1 else _meta(B, H, K)
    beta = _meta(B, H) if shape.delta else None
    return one_token.linear_recurrence_step_launch(
        arch, keys, keys, values, decay, beta, state, values, K**-0.5
    )


def _channel_launches(arch: str) -> Iterator[tuple[str, Launch]]:
    N, S = CHANNELS
    x, of_states = _meta(2, TOKENS, N, dtype=torch.bfloat16), _meta(2, TOKENS, S)
    gates, state = _meta(2, TOKENS, N), _meta(2, N)
    backward = channels.backward_launch(arch, x, state, x, gates, state, None, x, gates, state)
    yield "scan_channels_backward", backward
    A, D = _meta(N, S), _meta(N)
    inputs = (x, gates, A, of_states, of_states, D)
    y, final, H = selective.new_outputs(x, A, save=True)
    out = selective.new_gradients(x, gates, A)
    yield "selective_backward", selective.backward_launch(arch, y, final, H, *inputs, None, out)
