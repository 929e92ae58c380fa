"""Launches of the attention kernels that are compiled for every architecture."""

# B batch, T tokens, H query heads, G key/value heads, K key width, V value width,
# N blocks per token

from collections.abc import Iterator

import torch
from torch import Tensor

from ..launch import Launch
from . import blocks, cached, dense, selected
from .arguments import ScoreRules
from .cache import allocate
from .configs import KIND, TABLE

# key width, value width, query heads, key/value heads, window
SEQUENCES = (
    (64, 64, 32, 8, None),
    (128, 128, 32, 8, None),
    (128, 128, 32, 8, 1024),
    (192, 128, 128, 128, None),
    (256, 256, 16, 2, 1024),
)
# key width, value width, query heads, key/value heads, dtype of the pages
CACHES = (
    (128, 128, 32, 8, torch.bfloat16),
    (128, 128, 32, 8, torch.int8),
    (128, 128, 32, 8, torch.float8_e4m3fn),
    (576, 512, 128, 1, torch.bfloat16),
    (576, 512, 128, 1, torch.int8),
    (576, 512, 128, 1, torch.float8_e4m3fn),
)
# key width, value width, query heads, key/value heads, block
SELECTIONS = ((128, 128, 64, 4, 64), (192, 128, 64, 4, 128))
# key width, value width, query heads, keys in a list: absorbed MLA, pooled entries
LISTS = ((576, 512, 128, 2048), (512, 512, 64, 512))
B, T, N, PAGE = 2, 8192, 16, 64
SCALE = 0.1


def launches(arch: str) -> Iterator[tuple[str, str, Launch]]:
    """(kernel, shape, launch): sequences with and without a window, caches, blocks of keys."""
    for K, V, H, G, window in SEQUENCES:
        name = "causal" if window is None else f"window {window}"
        for kernel, launch in _sequence(arch, K, V, H, G, window):
            yield kernel, f"{K}/{V} {name}", launch
    for K, V, H, G, dtype in CACHES:
        if ("decode_split", KIND[dtype]) in TABLE[arch]:  # sm_80 does not convert e4m3
            for kernel, launch in _cached(arch, K, V, H, G, dtype):
                yield kernel, f"{K}/{V} {str(dtype).removeprefix('torch.')}", launch
    for K, V, H, G, block in SELECTIONS:
        for kernel, launch in _selected(arch, K, V, H, G, block):
            yield kernel, f"{K}/{V} block {block}", launch
    for K, V, H, listed in LISTS:
        yield "selected_forward", f"{K}/{V}", _selected_keys(arch, K, V, H, listed)


def _sequence(
    arch: str, K: int, V: int, H: int, G: int, window: int | None
) -> Iterator[tuple[str, Launch]]:
    rule = ScoreRules(
        start_BT=None, end_BT=None, causal=True, window=window, scale=SCALE, softcap=None
    )
    q, k, v, o = (_meta(B, T, n, width) for n, width in ((H, K), (G, K), (G, V), (H, V)))
    lse = delta = _meta(B, H, T, dtype=torch.float32)
    yield "forward", dense.forward_launch(arch, q, k, v, o, lse, rule)
    yield "backward_delta", dense.delta_launch(arch, o, o, lse, delta)
    given = arch, q, k, v, o, lse, delta
    for launch in dense.keys_launches(*given, k, v, rule):
        yield "backward_keys", launch
    yield "backward_queries", dense.queries_launch(*given, q, rule)


def _cached(
    arch: str, K: int, V: int, H: int, G: int, dtype: torch.dtype
) -> Iterator[tuple[str, Launch]]:
    q, o, lse = _meta(B, 1, H, K), _meta(B, 1, H, V), _meta(B, H, 1, dtype=torch.float32)
    cache = allocate(
        batch=B,
        tokens=T,
        kv_heads=G,
        k_dim=K,
        v_dim=V,
        value_in_key=G == 1,
        page=PAGE,
        dtype=dtype,
        device="meta",
    )
    partial = cached.new_partial(arch, q, cache, None)
    yield "decode_split", cached.split_launch(arch, q, cache, partial, None, SCALE, None)
    if dtype == torch.bfloat16:
        yield "decode_combine", cached.combine_launch(arch, partial, o, lse)


def _selected(
    arch: str, K: int, V: int, H: int, G: int, block: int
) -> Iterator[tuple[str, Launch]]:
    q, k, v, o = (_meta(B, T, n, width) for n, width in ((H, K), (G, K), (G, V), (H, V)))
    lse = delta = _meta(B, H, T, dtype=torch.float32)
    lists = _meta(B, G, T, N, dtype=torch.int32)
    query_index, offset = (_meta(B, G, n, dtype=torch.int32) for n in (T * N, T // block + 1))
    heads, rows, rule = (arch, q, k, v), (None, o, lse), (block, SCALE)
    yield "blocks_forward", blocks.forward_launch(*heads, lists, *rows, *rule)
    launch = blocks.queries_launch(*heads, lists, *rows, delta, q, *rule)
    yield "blocks_backward_queries", launch
    launch = blocks.keys_launch(*heads, query_index, offset, *rows, delta, k, v, *rule)
    yield "blocks_backward_keys", launch


def _selected_keys(arch: str, K: int, V: int, H: int, listed: int) -> Launch:
    q, k, o = _meta(B, T, H, K), _meta(B, T, K), _meta(B, T, H, V)
    lse, index = _meta(B, H, T, dtype=torch.float32), _meta(B, T, listed, dtype=torch.int32)
    return selected.forward_launch(arch, q, k, index, o, lse, SCALE)


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
