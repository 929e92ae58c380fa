"""Paged KV cache: allocation, appending, quantization, reading."""

# B rows (sequences), P pages in all, G key/value heads, K key width, V value width, Q new tokens,
# S token slots per row

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # per quantized dtype


@dataclass(frozen=True, kw_only=True)
class PagedCache:
    """Paged KV cache: token t of row b is in page page_table[b, t // page], slot t % page.

    `v_pages` None: the value is the first `v_dim` numbers of the key (absorbed MLA, arXiv
    2405.04434). int8 and float8_e4m3fn pages have a float32 scale per token and head: value =
    stored * scale. The record is frozen, its tensors are not: `append` writes into them.
    """

    k_pages: Tensor  # [P, page, G, K]
    v_pages: Tensor | None  # [P, page, G, V]
    v_dim: int
    page_table: Tensor  # [B, S / page], int32
    lengths_B: Tensor  # int32
    k_scale: Tensor | None  # [P, page, G]
    v_scale: Tensor | None  # [P, page, G]; None where v_pages or k_scale is


def allocate(
    *,
    batch: int,
    tokens: int,
    kv_heads: int,
    k_dim: int,
    v_dim: int,
    value_in_key: bool = False,
    page: int = 64,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> PagedCache:
    """An empty cache of `batch` rows with room for `tokens` tokens each, pages in order.

    kv_heads G, k_dim K and v_dim V are sizes per token; `page` tokens per page. `dtype` is a float
    type, int8 or float8_e4m3fn (quantized, with scales). `value_in_key`: no v_pages, and
    v_dim <= k_dim.
    """
    pages_per_row = -(-tokens // page)
    places = (batch * pages_per_row, page, kv_heads)

    def pages(*width: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*places, *width, dtype=dtype, device=device)

    quantized = dtype in LARGEST
    table = torch.arange(places[0], dtype=torch.int32, device=device)
    return PagedCache(
        k_pages=pages(k_dim, dtype=dtype),
        v_pages=None if value_in_key else pages(v_dim, dtype=dtype),
        v_dim=v_dim,
        page_table=table.view(batch, pages_per_row),
        lengths_B=torch.zeros(batch, dtype=torch.int32, device=device),
        k_scale=pages(dtype=torch.float32) if quantized else None,
        v_scale=pages(dtype=torch.float32) if quantized and not value_in_key else None,
    )


def append(cache: PagedCache, k_BQGK: Tensor, v_BQGV: Tensor | None) -> None:
    """Write the next Q tokens of every row and add Q to its length, in place.

    `k_BQGK` and `v_BQGV` (None with value_in_key) are quantized to the dtype of the pages. There
    must be room, lengths + Q <= S: on CUDA this is not checked.
    """
    Q, page = k_BQGK.shape[1], cache.k_pages.shape[1]
    token_BQ = cache.lengths_B[:, None] + torch.arange(Q, device=k_BQGK.device)
    place = cache.page_table.gather(1, token_BQ // page).long(), token_BQ % page
    _write(cache.k_pages, cache.k_scale, place, k_BQGK)
    if cache.v_pages is not None:
        assert v_BQGV is not None
        _write(cache.v_pages, cache.v_scale, place, v_BQGV)
    cache.lengths_B.add_(Q)


def _write(pages: Tensor, scale: Tensor | None, place: tuple[Tensor, Tensor], x: Tensor) -> None:
    if scale is not None:
        x, scale[place] = quantize_rows(x, pages.dtype)
    pages[place] = x.to(pages.dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(values in `dtype`, float32 scales [...]) of x [..., width], symmetric: scale = amax / max.

    `dtype` is int8 (max 127, rounded to nearest) or float8_e4m3fn (max 448).
    """
    wide, largest = x.float(), LARGEST[dtype]
    scale = (wide.abs().amax(-1) / largest).clamp(min=1e-12)
    values = (wide / scale[..., None]).clamp(-largest, largest)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def read(cache: PagedCache) -> tuple[Tensor, Tensor]:
    """(k_BSGK, v_BSGV) of all S slots of each row in order, dequantized; zero past its length."""
    k_BSGK = _gather(cache, cache.k_pages, cache.k_scale)
    if cache.v_pages is None:
        return k_BSGK, k_BSGK[..., : cache.v_dim]
    return k_BSGK, _gather(cache, cache.v_pages, cache.v_scale)


def _gather(cache: PagedCache, pages: Tensor, scale: Tensor | None) -> Tensor:
    x = in_order(cache, pages)
    if scale is not None:
        x = x.float() * in_order(cache, scale)[..., None]
    past_BS = torch.arange(x.shape[1], device=x.device) >= cache.lengths_B[:, None]
    return x.masked_fill(past_BS[..., None, None], 0)


def in_order(cache: PagedCache, pages: Tensor) -> Tensor:
    """`pages` of the cache, or their scales, gathered as [B, S, ...]."""
    return pages.index_select(0, cache.page_table.flatten()).view(
        len(cache.page_table), -1, *pages.shape[2:]
    )
