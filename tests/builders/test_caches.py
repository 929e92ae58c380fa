"""The KV cache: growth, windows, padding, 8-bit formats, copies."""

import pytest
import torch

from archfront.builders.caches import PAGE, TokenCache


def append(
    cache: TokenCache, x: torch.Tensor, start: int, valid: torch.Tensor | None = None
) -> None:
    positions = torch.arange(start, start + x.shape[1]).expand(len(x), -1)
    cache.append(positions, valid, x=x)


def test_a_cache_grows_by_pages() -> None:
    x = torch.randn(1, 2 * PAGE + 10, 2, 4)
    cache = TokenCache(1, window=None, kv="bf16")
    append(cache, x[:, :3], 0)
    for t in range(3, x.shape[1]):
        append(cache, x[:, t : t + 1], t)
    torch.testing.assert_close(cache.read("x"), x)
    assert cache.positions()[0].tolist() == list(range(x.shape[1]))


def test_a_windowed_cache_holds_the_last_tokens_only() -> None:
    x = torch.arange(20.0).reshape(1, 20, 1, 1)
    cache = TokenCache(1, window=5, kv="bf16")
    append(cache, x[:, :3], 0)
    for t in range(3, 20):
        append(cache, x[:, t : t + 1], t)
    assert sorted(cache.read("x").flatten().tolist()) == [15, 16, 17, 18, 19]
    assert sum(tensor.numel() for tensor in cache.tensors()) == 5


def test_padding_is_not_cached() -> None:
    x = torch.arange(6.0).reshape(2, 3, 1, 1)
    cache = TokenCache(2, window=None, kv="bf16")
    append(cache, x, 0, torch.tensor([[True, True, True], [True, False, False]]))
    append(cache, 10 + x[:, :1], 3)
    assert cache.positions().tolist() == [[0, 1, 2, 3], [0, 3, -1, -1]]
    assert cache.read("x")[1, :2].flatten().tolist() == [3, 13]


@pytest.mark.parametrize(("kv", "dtype"), [("fp8", torch.float8_e4m3fn), ("int8", torch.int8)])
def test_an_8_bit_cache_has_one_scale_per_token_and_head(kv: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, 3, 16)
    cache = TokenCache(2, window=None, kv=kv)
    append(cache, x, 0)
    values, scales = cache.tensors()
    assert values.dtype == dtype
    assert scales.shape == (2, 7, 3, 1)
    assert ((cache.read("x") - x).abs() <= 0.07 * x.abs().amax(-1, keepdim=True)).all()


def test_appending_to_a_cache_leaves_its_copy_unchanged() -> None:
    x = torch.randn(1, 4, 1, 2)
    cache = TokenCache(1, window=None, kv="bf16")
    append(cache, x, 0)
    copy = cache.copy()
    append(cache, x, 4)
    torch.testing.assert_close(copy.read("x"), x)


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_selected_pages_hold_the_selected_tokens_of_each_head(kv: str) -> None:
    cache = TokenCache(2, window=None, kv=kv)
    k, v = torch.randn(2, 2, 100, 2, 4)
    positions = torch.arange(100).expand(2, -1)
    cache.append(positions, None, k=k, v=v)
    selected = torch.randint(100, (2, 4, PAGE), generator=torch.Generator().manual_seed(0))
    pages = cache.selected_pages("k", "v", selected, torch.full((2, 4), 10))
    assert pages.lengths_B.tolist() == [10] * 8
    for group in range(4):
        stored = pages.k_pages[4 + group, :, 0].float()
        if pages.k_scale is not None:
            stored = stored * pages.k_scale[4 + group]
        torch.testing.assert_close(stored, cache.read("k")[1, selected[1, group], group // 2])
