"""Launches of the row kernels that are compiled for every architecture."""

# D width, H heads, N channels, V vocabulary

from collections.abc import Iterator

import torch
from torch import Tensor

from ..launch import Launch
from . import conv, conv_step, cross_entropy, gated_norm, glu, l2, norm, rope

Listed = Iterator[tuple[str, str, Launch]]
EPS = 1e-6
SHORT, WIDE = torch.bfloat16, torch.float32
# rows, width, with a residual: heads, a width that is no multiple of a tile, a model, the widest
NORMS = (
    (65_536, 128, False, SHORT),
    (8192, 1000, True, SHORT),
    (8192, 4096, True, SHORT),
    (8192, 8192, True, WIDE),
    (8192, 16_384, False, WIDE),
)
# heads, groups, width, activation, gate first: gated DeltaNet, KDA, Mamba-2 whole and in groups
GATED_NORMS = (
    (32, 1, 128, "silu", False, SHORT),
    (32, 1, 128, "sigmoid", False, WIDE),
    (1, 1, 8192, "silu", True, WIDE),
    (1, 8, 16_384, "silu", True, SHORT),
)
GLUS = (
    (60, "gelu_tanh", None, WIDE),
    (14_336, "silu", None, SHORT),
    (14_336, "gelu", None, SHORT),
    (2880, "oai", 7.0, SHORT),
)
# heads, width, rotated, interleaved, last: queries, a part of them, MLA's key, DeepSeek-V4's
ROPES = (
    (32, 128, 128, False, False, SHORT),
    (64, 256, 64, False, False, SHORT),
    (1, 64, 64, True, False, SHORT),
    (64, 512, 64, True, True, WIDE),
)
# channels, taps, with bias, tail and segment_ids: gated DeltaNet, all at once
CONVOLUTIONS = ((12_288, 4, False, SHORT), (1000, 3, True, WIDE))
LOSSES = ((128_256, 30.0, SHORT), (1000, None, WIDE))


def launches(arch: str) -> Listed:
    """(kernel, shape, launch): every kernel at the shapes above."""
    for family in (_norms, _gated_norms, _l2_norms, _glus, _ropes, _convolutions, _losses):
        yield from family(arch)


def _norms(arch: str) -> Listed:
    for num_rows, width, add, dtype in NORMS:
        x, w, rstd = _empty(dtype, num_rows, width), _empty(dtype, width), _empty(WIDE, num_rows)
        x_MHD, other, name = (
            x.unsqueeze(1),
            x if add else None,
            "add_rms_norm" if add else "rms_norm",
        )
        shape = f"{num_rows} x {width} {dtype}"
        forward = norm.forward_launch(arch, x_MHD, other, w, x, other, rstd, EPS, False)
        yield f"{name}_forward", shape, forward
        if width <= norm.WIDEST_WITH_GRADIENT:
            dw = norm.partial_sums(arch, x_MHD)
            backward = norm.backward_launch(arch, x, other, x_MHD, w, rstd, x, dw, False)
            yield f"{name}_backward", shape, backward


def _gated_norms(arch: str) -> Listed:
    for heads, groups, width, activation, gate_first, dtype in GATED_NORMS:
        wider, y = _empty(dtype, 2048, 2 * heads * width), _empty(dtype, 2048 * heads, width)
        x, z = (half.unflatten(1, (heads, width)) for half in wider.chunk(2, dim=1))
        w, dw = _empty(dtype, width), gated_norm.partial_sums(arch, x, groups)
        kind = EPS, activation, gate_first, groups
        shape = f"{heads} x {width} {activation} {dtype}"
        forward = gated_norm.forward_launch(arch, x, z, w, y, *kind)
        yield "gated_rms_norm_forward", shape, forward
        backward = gated_norm.backward_launch(arch, y, x, z, w, y, y, dw, *kind)
        yield "gated_rms_norm_backward", shape, backward


def _l2_norms(arch: str) -> Listed:
    x, y = _empty(SHORT, 2048, 16, 256)[..., :128], _empty(SHORT, 2048 * 16, 128)
    yield "l2_norm_forward", f"16 x 128 {SHORT}", l2.forward_launch(arch, x, y, EPS)
    yield "l2_norm_backward", f"16 x 128 {SHORT}", l2.backward_launch(arch, y, x, y, EPS)


def _glus(arch: str) -> Listed:
    for width, activation, limit, dtype in GLUS:
        h, shape, kind = (
            _empty(dtype, 8192, width),
            f"{width} {activation} {dtype}",
            (activation, limit),
        )
        yield "glu_forward", shape, glu.forward_launch(arch, h, h, h, *kind)
        yield "glu_backward", shape, glu.backward_launch(arch, h, h, h, h, h, *kind)
    h, shape = _empty(SHORT, 8192, 14_336), f"14336 {SHORT}"
    yield "relu2_forward", shape, glu.forward_launch(arch, None, h, h, "relu2", None)
    yield "relu2_backward", shape, glu.backward_launch(arch, h, None, h, None, h, "relu2", None)


def _ropes(arch: str) -> Listed:
    for heads, width, rotated, interleaved, last, dtype in ROPES:
        x, table = _empty(dtype, 8192, heads, width), _empty(WIDE, 8192, rotated // 2)
        launch = rope.launch(arch, x, table, table, x, interleaved, last, inverse=True)
        yield "rope", f"{heads} x {width}, {rotated} {dtype}", launch


def _convolutions(arch: str) -> Listed:
    for channels, taps, all_at_once, dtype in CONVOLUTIONS:
        x, w = _empty(dtype, 2, 4096, channels), _empty(dtype, channels, taps)
        y, tail = x[:, 0], _empty(dtype, 2, taps - 1, channels)
        bias = _empty(dtype, channels) if all_at_once else None
        segment_ids = _empty(torch.int32, 2, 4096) if all_at_once else None
        operands = x, w, bias, tail if all_at_once else None, segment_ids
        dw = conv.partial_sums(arch, x, w, bias)
        shape = f"{channels} x {taps} {dtype}"
        yield "short_conv_forward", shape, conv.forward_launch(arch, *operands, x, True)
        yield "short_conv_backward", shape, conv.backward_launch(arch, x, *operands, x, dw, True)
        yield "short_conv_step", shape, conv_step.launch(arch, y, tail, w, bias, y, True)


def _losses(arch: str) -> Listed:
    for vocabulary, softcap, dtype in LOSSES:
        logits, gradient = _empty(WIDE, 1024, vocabulary), _empty(dtype, 1024, vocabulary)
        target, loss = _empty(torch.int64, 1024), _empty(WIDE, 1024)
        operands = logits, target, loss, gradient
        launch = cross_entropy.launch(arch, *operands, scale=1.0, softcap=softcap, z_loss=1e-4)
        yield "cross_entropy", f"{vocabulary} {dtype}", launch


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
