import pytest
import torch

from archfront.kernels.attention import cache, cached, op, reference


def held(lengths, *, pages, G=2, K=32, V=16, shared=False, page=16, dtype=torch.float32):
    """A cache with rows of the given lengths, pages in random order, NaN in unused slots."""
    most = max(lengths)
    x = cache.allocate(
        batch=len(lengths),
        tokens=most + 9,
        kv_heads=G,
        k_dim=K,
        v_dim=V,
        value_in_key=shared,
        page=page,
        dtype=pages,
    )
    x.page_table.copy_(torch.randperm(x.page_table.numel()).view_as(x.page_table))
    if pages != torch.int8:
        for part in (x.k_pages, x.v_pages):
            if part is not None:
                part.copy_(torch.full(part.shape, torch.nan))
    if most:
        k, v = (torch.randn(len(lengths), most, G, width).to(dtype) for width in (K, V))
        cache.append(x, k, None if shared else v)
    x.lengths_B.copy_(torch.tensor(lengths))
    return x


def check(q, x, **rule):
    """The error bounds of conftest.check_against_reference."""
    o, lse = op.attend_cached(q, x, **rule, backend="triton")
    truth, lse_truth = reference.attend_cached(q.double(), x, **rule)
    plain, _ = reference.attend_cached(q, x, **rule)
    assert (o.shape, o.dtype, lse.dtype) == (plain.shape, plain.dtype, torch.float32)
    rounding = (plain - truth).norm().item()
    bound = 1e-5 * truth.norm().item() if q.dtype == torch.float32 else 2 * rounding
    assert (o - truth).norm() <= bound
    torch.testing.assert_close(lse.double(), lse_truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 2), (17, 64), (100, 3)])
@pytest.mark.parametrize("page", [16, 7])
def test_rows_of_any_length_are_read(lengths, page):
    check(torch.randn(2, 1, 4, 32), held(lengths, pages=torch.float32, page=page))


def test_an_empty_row_gives_nothing():
    x = held((0, 5), pages=torch.float32)
    o, lse = op.attend_cached(torch.randn(2, 1, 4, 32), x, backend="triton")
    assert o[0].count_nonzero() == 0
    assert (lse[0] == -torch.inf).all()
    assert lse[1].isfinite().all()


@pytest.mark.parametrize("rule", [{}, {"window": 9}, {"window": 1}, {"softcap": 2.0}])
def test_several_new_tokens_are_causal_among_themselves(rule):
    check(torch.randn(2, 3, 4, 32), held((3, 77), pages=torch.float32), **rule)


def test_a_group_taller_than_a_tile_takes_several():
    check(torch.randn(1, 2, 21, 16), held((40,), pages=torch.float32, G=1, K=16))


@pytest.mark.parametrize(("K", "V"), [(48, 32), (40, 24), (32, 32)])
def test_the_key_may_hold_the_value(K, V):
    x = held((20, 77), pages=torch.float32, G=1, K=K, V=V, shared=True)
    check(torch.randn(2, 1, 6, K), x, scale=0.2)


def test_a_key_is_read_in_two_parts():
    check(torch.randn(1, 1, 2, 150), held((50,), pages=torch.float32, G=1, K=150, V=100))


@pytest.mark.parametrize("pages", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_are_applied_beside_the_tile(pages, shared, dtype):
    x = held((20, 77), pages=pages, G=1, shared=shared, dtype=dtype)
    check(torch.randn(2, 1, 4, 32).to(dtype), x, softcap=5.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(dtype):
    check(torch.randn(2, 1, 4, 32).to(dtype), held((33, 150), pages=dtype, dtype=dtype))


def test_the_splits_fill_the_device_but_not_beyond_the_keys():
    q = torch.empty(1, 1, 8, 128, dtype=torch.bfloat16, device="meta")
    sizes = {"batch": 1, "kv_heads": 8, "k_dim": 128, "v_dim": 128, "dtype": torch.bfloat16}
    splits = [
        len(cached.new_partial("sm_90", q, cache.allocate(**sizes, tokens=tokens), window).m_SBQH)
        for tokens, window in ((100_000, None), (64, None), (100_000, 64), (256, None))
    ]
    assert splits == [33, 1, 1, 4]


def test_the_operator_passes_torchs_opcheck():
    x = held((5, 9), pages=torch.int8)
    torch.library.opcheck(
        cached.attend_cached_op,
        (
            torch.randn(2, 1, 4, 32),
            x.k_pages,
            x.v_pages,
            x.v_dim,
            x.page_table,
            x.lengths_B,
            x.k_scale,
            x.v_scale,
            None,
            0.2,
            None,
        ),
    )
