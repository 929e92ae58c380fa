import pytest
import torch

from archfront.kernels.rows import op, rope

# batch, tokens, heads, width, rotated
SHAPES = [(1, 1, 1, 2, 2), (2, 17, 3, 20, 12), (1, 100, 4, 64, 64), (2, 5, 40, 12, 10)]


def tables(*shape):
    angle = 3 * torch.randn(shape)
    return {"cos": angle.cos(), "sin": angle.sin()}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "heads", "width", "rotated"), SHAPES)
def test_rope_matches_its_reference(
    assert_matches_reference, batch, tokens, heads, width, rotated, interleaved, last
):
    x = torch.randn(batch, tokens, heads, width)
    settings = {"rotated": rotated, "interleaved": interleaved, "last": last}
    assert_matches_reference("rows", "rope", {"x": x}, **tables(tokens, rotated // 2), **settings)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(
    assert_matches_reference, dtype, interleaved
):
    x = torch.randn(1, 17, 3, 20, dtype=dtype)
    settings = {"rotated": 12, "interleaved": interleaved}
    assert_matches_reference("rows", "rope", {"x": x}, **tables(17, 6), **settings)


def test_each_sequence_may_have_its_own_positions(assert_matches_reference):
    x = torch.randn(3, 17, 2, 16)
    assert_matches_reference("rows", "rope", {"x": x}, **tables(3, 17, 8), rotated=16)


def test_the_heads_of_a_wider_projection_are_read_in_place(assert_matches_reference):
    q, _ = torch.randn(2, 17, 90).split([60, 30], dim=-1)
    assert_matches_reference(
        "rows", "rope", {"x": q.unflatten(-1, (3, 20))}, **tables(17, 5), rotated=10
    )


def test_what_is_not_rotated_keeps_its_bits():
    x = torch.randn(1, 17, 2, 24, dtype=torch.bfloat16)
    y = op.rope(x, **tables(17, 4), rotated=8, backend="triton")
    assert torch.equal(y[..., 8:], x[..., 8:])
    y = op.rope(x, **tables(17, 4), rotated=8, last=True, backend="triton")
    assert torch.equal(y[..., :16], x[..., :16])


def test_no_tokens_give_no_tokens():
    y = op.rope(torch.randn(2, 0, 3, 8), **tables(0, 4), rotated=8, backend="triton")
    assert y.shape == (2, 0, 3, 8)


def test_the_operator_passes_torchs_opcheck():
    x = torch.randn(17, 3, 20, requires_grad=True)
    torch.library.opcheck(rope.rope_op, (x, *tables(17, 6).values(), True, True, False))
