import pytest
import torch

from archfront.kernels.rows import l2, op

EPS = 0.1  # large, so that an epsilon in the wrong place shows


@pytest.mark.parametrize("shape", [(1, 1), (7, 60), (33, 128), (7, 1000), (2, 5, 3, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_l2_norm_matches_its_reference(assert_matches_reference, shape, dtype):
    assert_matches_reference("rows", "l2_norm", {"x": torch.randn(shape, dtype=dtype)}, eps=EPS)


def test_the_heads_of_a_wider_projection_are_read_in_place(assert_matches_reference):
    _, k = torch.randn(2, 3, 180).split([60, 120], dim=-1)
    assert_matches_reference("rows", "l2_norm", {"x": k.unflatten(-1, (4, 30))}, eps=EPS)


def test_no_rows_give_no_rows():
    assert op.l2_norm(torch.randn(3, 0, 60), EPS, backend="triton").shape == (3, 0, 60)


def test_the_operators_pass_torchs_opcheck():
    x, dy = torch.randn(7, 2, 30), torch.randn(14, 30)
    torch.library.opcheck(l2.l2_norm_backward_op, (dy, x, EPS))
    torch.library.opcheck(l2.l2_norm_op, (x.requires_grad_(), EPS))
