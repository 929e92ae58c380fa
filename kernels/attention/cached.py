"""Decode attention over a paged cache: launches of its kernels, and the custom operator."""

# B rows (sequences), Q new tokens, H query heads, G key/value heads, K key width, V value width,
# S splits, P pages in all

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from ..configs import ARCHS, Config, arch_of
from ..launch import Launch, require_device, run
from ..requirements import needs_gradient, require, require_float
from .arguments import require_scores, score_arguments, tile_width, widths
from .cache import LARGEST, PagedCache
from .configs import config_for
from .decode import decode_combine, decode_split

MOST_SPLITS = 128
PROGRAMS_PER_MULTIPROCESSOR = 2  # one loads while the other computes


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Results of the splits: accumulators, maxima and sums."""

    acc_SBQHV: Tensor
    m_SBQH: Tensor
    l_SBQH: Tensor


def split_config(arch: str, q_BQHK: Tensor, cache: PagedCache) -> Config:
    """The table's configuration, M no larger than the rows that share a key head."""
    Q, H, K = q_BQHK.shape[1:]
    config = config_for(arch, "decode_split", cache.k_pages.dtype, K, cache.v_dim)
    rows = tile_width(Q * H // cache.k_pages.shape[2])
    return replace(config, tiles={**config.tiles, "M": min(rows, config.tiles["M"])})


def split_programs(config: Config, q_BQHK: Tensor, cache: PagedCache) -> int:
    """Number of programs that read one split: per row, key head and tile of queries."""
    B, Q, H, _ = q_BQHK.shape
    G = cache.k_pages.shape[2]
    return B * G * triton.cdiv(Q * H // G, config.tiles["M"])


def new_partial(arch: str, q_BQHK: Tensor, cache: PagedCache, window: int | None) -> Partial:
    """Room for as many splits as fill the device, each with a tile to read at least."""
    config = split_config(arch, q_BQHK, cache)
    programs = PROGRAMS_PER_MULTIPROCESSOR * ARCHS[arch].multiprocessors
    wanted = triton.cdiv(programs, split_programs(config, q_BQHK, cache))
    B, Q, H, _ = q_BQHK.shape
    tokens = cache.page_table.shape[1] * cache.k_pages.shape[1]
    if window is not None:
        tokens = min(tokens, window + Q - 1)
    S = min(wanted, triton.cdiv(tokens, config.tiles["N"]), MOST_SPLITS)
    return Partial(
        acc_SBQHV=q_BQHK.new_empty(S, B, Q, H, cache.v_dim, dtype=torch.float32),
        m_SBQH=q_BQHK.new_empty(S, B, Q, H, dtype=torch.float32),
        l_SBQH=q_BQHK.new_empty(S, B, Q, H, dtype=torch.float32),
    )


def split_launch(
    arch: str,
    q_BQHK: Tensor,
    cache: PagedCache,
    partial: Partial,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Launch:
    """Launch of `decode_split`."""
    B, Q, H, K = q_BQHK.shape
    page, G = cache.k_pages.shape[1:3]
    config = split_config(arch, q_BQHK, cache)
    return Launch(
        kernel=decode_split,
        grid=(split_programs(config, q_BQHK, cache), len(partial.acc_SBQHV)),
        arguments={
            "q_ptr": q_BQHK,
            "k_ptr": cache.k_pages,
            "v_ptr": cache.v_pages,
            "k_scale_ptr": cache.k_scale,
            "v_scale_ptr": cache.v_scale,
            "page_table_ptr": cache.page_table,
            "length_ptr": cache.lengths_B,
            "acc_ptr": partial.acc_SBQHV,
            "m_ptr": partial.m_SBQH,
            "l_ptr": partial.l_SBQH,
            "num_rows": B * Q * H,
            "num_queries": Q,
            "num_kv_heads": G,
            "group": H // G,
            "pages_per_row": cache.page_table.shape[1],
            "window": window or 0,
            **score_arguments(scale, softcap),
            "WINDOW": window is not None,
            "QUANTIZED": cache.k_pages.dtype in LARGEST,
            "SHARED": cache.v_pages is None,
            "PAGE": page,
            **_decode_widths(K, cache.v_dim, shared=cache.v_pages is None),
            **config.tiles,
        },
        warps=config.warps,
        stages=config.stages,
    )


def _decode_widths(K: int, V: int, *, shared: bool) -> dict[str, int]:
    """Tile widths; a key that contains its value is split where the value ends."""
    if not shared:
        whole = widths(K, V)
        return whole | {"K_CUT": whole["K_MAIN"] if whole["K_REST"] else K}
    value = tile_width(V)
    rest = tile_width(K - V) if K > V else 0
    return {"K": K, "K_CUT": V, "K_MAIN": value, "K_REST": rest, "V": V, "V_TILE": value}


def combine_launch(arch: str, partial: Partial, o_BQHV: Tensor, lse_BHQ: Tensor) -> Launch:
    """Launch of `decode_combine`."""
    S, B, Q, H, V = partial.acc_SBQHV.shape
    config = config_for(arch, "decode_combine", torch.float32, V, V)
    return Launch(
        kernel=decode_combine,
        grid=(B * Q * H, triton.cdiv(V, config.tiles["COLS"])),
        arguments={
            "acc_ptr": partial.acc_SBQHV,
            "m_ptr": partial.m_SBQH,
            "l_ptr": partial.l_SBQH,
            "o_ptr": o_BQHV,
            "lse_ptr": lse_BHQ,
            "num_splits": S,
            "num_queries": Q,
            "num_heads": H,
            "V": V,
            "SPLITS": triton.next_power_of_2(S),
            **config.tiles,
        },
        warps=config.warps,
    )


@torch.library.custom_op("archfront::attend_cached", mutates_args=())
def attend_cached_op(
    q_BQHK: Tensor,
    k_pages: Tensor,
    v_pages: Tensor | None,
    v_dim: int,
    page_table: Tensor,
    lengths_B: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Custom operator `archfront::attend_cached`; the caller checks inputs."""
    cache = PagedCache(
        k_pages=k_pages,
        v_pages=v_pages,
        v_dim=v_dim,
        page_table=page_table,
        lengths_B=lengths_B,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    outputs = _attend_cached_outputs(q_BQHK, k_pages, v_pages, v_dim)
    arch = arch_of(q_BQHK.device)
    partial = new_partial(arch, q_BQHK, cache, window)
    run(split_launch(arch, q_BQHK, cache, partial, window, scale, softcap), q_BQHK)
    run(combine_launch(arch, partial, *outputs), q_BQHK)
    return outputs


@attend_cached_op.register_fake
def _attend_cached_outputs(
    q_BQHK: Tensor, k_pages: Tensor, v_pages: Tensor | None, v_dim: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    B, Q, H, _ = q_BQHK.shape
    lse_BHQ = q_BQHK.new_empty(B, H, Q, dtype=torch.float32)
    return q_BQHK.new_empty(B, Q, H, v_dim), lse_BHQ


def attend_cached(
    q_BQHK: Tensor, cache: PagedCache, window: int | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.attend_cached`. Raises Unsupported."""
    gradient = needs_gradient(q_BQHK)
    require(not gradient, "a cache is read without gradients: torch.no_grad()", gradient=gradient)
    require_device(q_BQHK)
    require_scores(scale, softcap)
    _require_cache(q_BQHK, cache)
    return attend_cached_op(
        q_BQHK.contiguous(),
        cache.k_pages,
        cache.v_pages,
        cache.v_dim,
        cache.page_table,
        cache.lengths_B,
        cache.k_scale,
        cache.v_scale,
        window,
        scale,
        softcap,
    )


def _require_cache(q_BQHK: Tensor, cache: PagedCache) -> None:
    require_float(q_BQHK, "q")
    shape = tuple(q_BQHK.shape)
    require(len(shape) == 4 and 0 not in shape, "q must be [B, Q, H, K], none of them 0", q=shape)
    (B, _, H, K), (P, page, G, _) = q_BQHK.shape, cache.k_pages.shape
    require(H % G == 0, "the key/value heads must divide the query heads", heads=H, kv_heads=G)
    dtype = cache.k_pages.dtype
    require(
        dtype in (q_BQHK.dtype, *LARGEST),
        f"pages must be of q's dtype {q_BQHK.dtype} or quantized",
        dtype=dtype,
    )
    facts: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype]] = {
        "k_pages": (cache.k_pages, (P, page, G, K), dtype),
        "page_table": (cache.page_table, (B, cache.page_table.shape[-1]), torch.int32),
        "lengths_B": (cache.lengths_B, (B,), torch.int32),
    }
    if dtype in LARGEST:
        facts["k_scale"] = (cache.k_scale, (P, page, G), torch.float32)
    if cache.v_pages is not None:
        facts["v_pages"] = (cache.v_pages, (P, page, G, cache.v_dim), dtype)
        if dtype in LARGEST:
            facts["v_scale"] = (cache.v_scale, (P, page, G), torch.float32)
    for name, (x, shape, dtype) in facts.items():
        assert x is not None, f"{name} is missing"
        require(
            (tuple(x.shape), x.dtype, x.device) == (shape, dtype, q_BQHK.device)
            and x.is_contiguous(),
            f"{name} must be contiguous, {shape} {dtype} on {q_BQHK.device}",
            shape=tuple(x.shape),
            strides=x.stride(),
            dtype=x.dtype,
            device=x.device,
        )
    require(
        cache.v_dim <= K or cache.v_pages is not None,
        "a value in its key is no wider",
        v_dim=cache.v_dim,
        K=K,
    )
