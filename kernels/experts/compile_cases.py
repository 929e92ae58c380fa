"""Launches of the expert kernels that are compiled for every architecture."""

# N tokens, K choices per token, E experts, D model width, F hidden width per expert

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..launch import Launch
from .bwd_activation import bwd_activation_launch
from .combine import combine_launch
from .gate_up import gate_up_launch
from .grouped_gemm import grouped_gemm_launch
from .weight_grad import weight_grad_launch

Listed = Iterator[tuple[str, str, Launch]]
Rows = Iterator[tuple[str, Launch]]
QWEN = (8, 128, 2048, 768, "silu", None)  # K, E, D, F, activation, limit
MIXTRAL = (2, 8, 4096, 14_336, "silu", None)
NEMOTRON = (6, 128, 2688, 1856, "relu2", None)  # no gate
GPT_OSS = (4, 32, 2880, 2880, "oai", 7.0)
UNEVEN = (4, 32, 1000, 100, "silu", 10.0)  # widths that are no multiple of a tile

ALL = (
    "gate_up",
    "gate_up and keep",
    "grouped_gemm down",
    "combine",
    "grouped_gemm dhidden",
    "bwd_activation",
    "weight_grad ddown",
    "weight_grad dup",
    "grouped_gemm dx",
    "combine dx",
    "grouped_gemm with bias",
    "weight_grad with bias",
)
EPILOGUES = ("gate_up and keep", "bwd_activation")
PRODUCTS = (
    "gate_up and keep",
    "grouped_gemm down",
    "grouped_gemm dhidden",
    "weight_grad dup",
    "grouped_gemm dx",
)
# tokens, experts, dtype, kernels; 64 tokens, as in decoding, are few rows per expert
SHAPES = (
    (8192, QWEN, torch.bfloat16, ALL),
    (64, QWEN, torch.bfloat16, PRODUCTS),
    (8192, QWEN, torch.float32, (*PRODUCTS, "bwd_activation")),
    (8192, UNEVEN, torch.bfloat16, (*PRODUCTS, "bwd_activation")),
    (8192, MIXTRAL, torch.bfloat16, ("gate_up and keep", "grouped_gemm down", "weight_grad dup")),
    (8192, NEMOTRON, torch.bfloat16, EPILOGUES),
    (8192, GPT_OSS, torch.bfloat16, EPILOGUES),
)


def launches(arch: str) -> Listed:
    """(kernel, shape, launch): the kernels at the shapes above."""
    for N, (K, E, D, F, activation, limit), dtype, listed in SHAPES:
        shape = f"{N} x {K} of {E}, {D} x {F} {activation} {str(dtype).removeprefix('torch.')}"
        for row, launch in _mixture(arch, dtype, N, K, E, D, F, activation, limit):
            if row in listed:
                kernel, _, what = row.partition(" ")
                yield kernel, f"{what} {shape}".strip(), launch


def _mixture(
    arch: str,
    dtype: torch.dtype,
    N: int,
    K: int,
    E: int,
    D: int,
    F: int,
    activation: str,
    limit: float | None,
) -> Rows:
    x, z = _empty(dtype, N, D), _empty(dtype, N * K, D)
    topk_weights, bias = _empty(torch.float32, N, K), _empty(dtype, E, D)
    up_w, down_w = _empty(dtype, E, F, D), _empty(dtype, E, D, F)
    order = _empty(torch.int64, N * K)
    offsets = _empty(torch.int32, E + 1)
    hidden = _empty(dtype, N * K, F)
    gate, gate_w = (None, None) if activation == "relu2" else (hidden, up_w)

    inputs = x, gate_w, up_w, order, offsets
    yield "gate_up", gate_up_launch(arch, *inputs, None, None, hidden, K, activation, limit)
    kept = gate, hidden, hidden
    yield "gate_up and keep", gate_up_launch(arch, *inputs, *kept, K, activation, limit)
    into = hidden, gate, hidden, topk_weights
    back = bwd_activation_launch(
        hidden, topk_weights, order, offsets, gate, hidden, *into, activation, limit
    )
    yield "bwd_activation", back
    yield "combine", combine_launch(z, topk_weights, x, K)
    yield "combine dx", combine_launch(z, None, x, K)

    product = partial(grouped_gemm_launch, choice_M=order, choices=K)
    yield "grouped_gemm down", product(arch, hidden, down_w.mT, None, offsets, z, y_by_choice=True)
    yield "grouped_gemm dhidden", product(arch, x, down_w, None, offsets, hidden, x_by_token=True)
    other = None if gate is None else (gate, up_w)
    dx = product(arch, hidden, up_w, None, offsets, z, y_by_choice=True, other=other)
    yield "grouped_gemm dx", dx
    yield "grouped_gemm with bias", grouped_gemm_launch(arch, hidden, down_w.mT, bias, offsets, z)

    gradient = partial(weight_grad_launch, choice_M=order, choices=K)
    yield "weight_grad dup", gradient(arch, hidden, x, offsets, up_w, b_by_token=True)
    yield "weight_grad ddown", gradient(arch, x, hidden, offsets, down_w, a_by_token=True)
    yield "weight_grad with bias", weight_grad_launch(arch, z, hidden, offsets, down_w, bias)


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
