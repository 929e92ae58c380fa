"""Attention over a list of keys per query, in the interpreter, against its reference."""

import pytest
import torch

from archfront.kernels.attention import op, selected


def inputs(B, T, C, H, K, dtype=torch.float32):
    return {"q": torch.randn(B, T, H, K).to(dtype), "k": torch.randn(B, C, K).to(dtype)}


def lists(B, T, C, N):
    """Different keys for each query, about a third of the entries none."""
    index = torch.rand(B, T, C).topk(N).indices.int()
    return index.masked_fill(torch.rand(index.shape) < 0.3, -1)


@pytest.mark.parametrize(("heads", "width", "v_dim"), [(3, 20, 12), (17, 40, 32), (2, 16, 16)])
def test_the_kernel_equals_the_reference(assert_matches_reference, heads, width, v_dim):
    index = lists(2, 5, 41, 37)
    assert_matches_reference(
        "attention",
        "attend_selected",
        inputs(2, 5, 41, heads, width),
        index_BTN=index,
        v_dim=v_dim,
    )


def test_a_16_bit_dtype_errs_no_more_than_its_rounding(assert_matches_reference):
    given = inputs(1, 4, 50, 4, 48, torch.bfloat16)
    assert_matches_reference(
        "attention", "attend_selected", given, index_BTN=lists(1, 4, 50, 33), v_dim=32
    )


def test_a_query_without_keys_reads_zeros():
    q, k = (x.requires_grad_() for x in inputs(1, 3, 9, 2, 16).values())
    none = torch.full((1, 3, 4), -1, dtype=torch.int32)
    o, lse = op.attend_selected(q, k, none, v_dim=16, backend="triton")
    o.sum().backward()
    assert o.count_nonzero() == 0
    assert (lse == -torch.inf).all()
    assert q.grad.count_nonzero() == k.grad.count_nonzero() == 0


def test_the_operator_passes_torchs_opcheck():
    q, k = (x.requires_grad_() for x in inputs(1, 3, 9, 2, 20).values())
    torch.library.opcheck(selected.attend_selected_op, (q, k, lists(1, 3, 9, 4), 12, 0.3))
