import pytest
import torch

from archfront.kernels.attention import blocks, op


def heads(B, T, H, G, K, V, dtype=torch.float32):
    shapes = {"q": (B, T, H, K), "k": (B, T, G, K), "v": (B, T, G, V)}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def lists(B, G, T, *, block, n=3):
    """Each token's own block first, then others: some later than the token, some -1."""
    own = (torch.arange(T) // block).int()
    others = torch.rand(B, G, T, -(-T // block)).topk(n).indices.int()
    others[(others == own[:, None]) | (torch.rand(others.shape) < 0.3)] = -1
    return torch.cat([own[:, None].expand(B, G, T, 1), others], -1)


@pytest.mark.parametrize("tokens", [1, 17, 40])
def test_listed_blocks_match_the_reference(assert_matches_reference, tokens):
    listed = lists(1, 1, tokens, block=16, n=min(3, -(-tokens // 16)))
    inputs = heads(1, tokens, 2, 1, 20, 12)
    assert_matches_reference("attention", "attend_blocks", inputs, blocks_BGTN=listed, block=16)


def test_each_key_head_has_lists_of_its_own(assert_matches_reference):
    listed = lists(1, 2, 17, block=16, n=2)
    assert_matches_reference(
        "attention", "attend_blocks", heads(1, 17, 6, 2, 16, 16), blocks_BGTN=listed, block=16
    )


def test_segments_do_not_see_each_other(assert_matches_reference):
    segment_ids = torch.tensor([[0] * 5 + [2] * 25], dtype=torch.int32)
    rule = {"blocks_BGTN": lists(1, 1, 30, block=16, n=2), "block": 16, "segment_ids": segment_ids}
    assert_matches_reference("attention", "attend_blocks", heads(1, 30, 2, 1, 16, 16), **rule)


# blocks of several tiles, and a key in two parts
@pytest.mark.parametrize(("K", "block"), [(32, 64), (150, 32)])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(assert_matches_reference, K, block):
    listed = lists(1, 1, 33, block=block, n=1)
    inputs = heads(1, 33, 4, 1, K, 32, torch.bfloat16)
    assert_matches_reference("attention", "attend_blocks", inputs, blocks_BGTN=listed, block=block)


def test_a_block_may_be_larger_than_a_tile(assert_matches_reference):
    listed = lists(1, 1, 9, block=128, n=1)
    assert_matches_reference(
        "attention", "attend_blocks", heads(1, 9, 1, 1, 16, 16), blocks_BGTN=listed, block=128
    )


def test_a_token_without_blocks_reads_zeros():
    inputs = [x.requires_grad_() for x in heads(1, 17, 2, 1, 16, 16).values()]
    none = torch.full((1, 1, 17, 2), -1, dtype=torch.int32)
    o, lse = op.attend_blocks(*inputs, none, block=16, backend="triton")
    o.sum().backward()
    assert o.count_nonzero() == 0
    assert (lse == -torch.inf).all()
    assert all(x.grad.count_nonzero() == 0 for x in inputs)


def test_the_inverted_lists_hold_the_tokens_of_a_block():
    listed = torch.tensor([[[[0, -1], [0, 1], [1, 0], [-1, -1]]]], dtype=torch.int32)
    query_index, offset = blocks.invert_lists(listed, block=2)
    assert offset.tolist() == [[[0, 3, 5]]]
    assert query_index[0, 0, :5].tolist() == [0, 1, 2, 1, 2]


def test_the_operators_pass_torchs_opcheck():
    q, k, v = heads(1, 3, 2, 1, 16, 16).values()
    rule = lists(1, 1, 3, block=16, n=1), None, 16, 0.3
    o, lse = blocks.attend_blocks_op(q, k, v, *rule)
    gradients = torch.randn_like(o), torch.randn_like(lse)
    torch.library.opcheck(blocks.attend_blocks_backward_op, (*gradients, o, lse, q, k, v, *rule))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(blocks.attend_blocks_op, (*leaves, *rule))
