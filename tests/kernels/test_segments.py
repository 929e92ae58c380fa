"""Packed sequences: cu_seqlens gives what the segment ids of the same boundaries give."""

import pytest
import torch

from archfront.kernels.attention import op as attention
from archfront.kernels.recurrent import op as recurrent
from archfront.kernels.rows import op as rows
from archfront.kernels.segments import segment_ids_from_cu_seqlens

T = 20
CU_SEQLENS = torch.tensor([0, 1, 7, 16, T], dtype=torch.int32)
SEGMENT_IDS = torch.tensor([[0] + [1] * 6 + [2] * 9 + [3] * 4], dtype=torch.int32)


def rand(*shape):
    return torch.randn(1, T, *shape)


q, k, v, beta = rand(2, 8), rand(2, 8), rand(2, 8), torch.rand(1, T, 2)
blocks = torch.arange(T).div(4, rounding_mode="floor").int().view(1, 1, T, 1).expand(1, 2, T, 1)
x, gates = rand(6), torch.rand(1, T, 6)
OPERATORS = {
    "attend": lambda **s: attention.attend(q, k, v, **s),
    "attend_without_lse": lambda **s: (attention.attend_without_lse(q, k, v, **s),),
    "attend_blocks": lambda **s: attention.attend_blocks(q, k, v, blocks, block=4, **s),
    "linear_recurrence": lambda **s: recurrent.linear_recurrence(q, k, v, -beta, beta, **s),
    "rwkv7_recurrence": lambda **s: recurrent.rwkv7_recurrence(q, -k.abs(), k, v, -k, k, **s),
    "channel_scan": lambda **s: recurrent.channel_scan(x, -gates, **s),
    "selective_scan": lambda **s: recurrent.selective_scan(
        x, gates, -torch.ones(6, 3), rand(3), rand(3), torch.ones(6), **s
    ),
    "short_conv": lambda **s: (rows.short_conv(x, torch.ones(6, 4), activation="silu", **s),),
}


def outputs(operator, **settings):
    torch.manual_seed(0)
    return operator(**settings)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_cumulative_lengths_become_segment_ids(dtype):
    ids = segment_ids_from_cu_seqlens(CU_SEQLENS.to(dtype), T)
    assert ids.dtype == torch.int32
    assert torch.equal(ids, SEGMENT_IDS)


def test_an_empty_sequence_leaves_its_number_out():
    ids = segment_ids_from_cu_seqlens(torch.tensor([0, 2, 2, 3]), 3)
    assert ids.tolist() == [[0, 0, 2]]


def test_other_shapes_and_dtypes_are_rejected():
    for cu_seqlens in (torch.zeros(1, 3, dtype=torch.int32), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"int32 or int64 of shape \[sequences \+ 1\], got"):
            segment_ids_from_cu_seqlens(cu_seqlens, T)


@pytest.mark.parametrize("name", OPERATORS)
def test_both_give_equal_outputs(name):
    ours = outputs(OPERATORS[name], cu_seqlens=CU_SEQLENS)
    packed = outputs(OPERATORS[name], segment_ids=SEGMENT_IDS)
    plain = outputs(OPERATORS[name])
    assert all(torch.equal(a, b) for a, b in zip(ours, packed, strict=True))
    assert not torch.allclose(ours[0], plain[0])


@pytest.mark.parametrize("name", OPERATORS)
def test_one_of_the_two_may_be_given(name):
    with pytest.raises(ValueError, match="give segment_ids or cu_seqlens, not both"):
        OPERATORS[name](cu_seqlens=CU_SEQLENS, segment_ids=SEGMENT_IDS)


def test_cumulative_lengths_need_one_row():
    two = [y.expand(2, -1, -1, -1) for y in (q, k, v)]
    with pytest.raises(ValueError, match="all sequences packed in one row, got batch=2"):
        attention.attend(*two, cu_seqlens=CU_SEQLENS)
