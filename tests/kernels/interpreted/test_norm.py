import pytest
import torch

from archfront.kernels.rows import norm, op, reference

AWKWARD = [(rows, width) for rows in (1, 7, 33) for width in (1, 60, 100, 128, 1000)]
EPS = 0.1  # large, so that an epsilon in the wrong place shows


@pytest.mark.parametrize(("rows", "width"), AWKWARD)
def test_rms_norm_matches_its_reference(assert_matches_reference, rows, width):
    inputs = {"x": torch.randn(rows, width), "weight": torch.randn(width)}
    assert_matches_reference("rows", "rms_norm", inputs, eps=EPS)


@pytest.mark.parametrize(("rows", "width"), AWKWARD)
def test_add_rms_norm_matches_its_reference(assert_matches_reference, rows, width):
    x, residual = torch.randn(2, rows, width)
    inputs = {"x": x, "residual": residual, "weight": torch.randn(width)}
    assert_matches_reference("rows", "add_rms_norm", inputs, eps=EPS)


@pytest.mark.parametrize(("rows", "width"), [(7, 60), (33, 128), (7, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_centered_weight_adds_one(assert_matches_reference, rows, width, dtype):
    x, residual = torch.randn(2, rows, width, dtype=dtype)
    weight = torch.randn(width, dtype=dtype)
    settings = {"eps": EPS, "zero_centered": True}
    assert_matches_reference("rows", "rms_norm", {"x": x, "weight": weight}, **settings)
    assert_matches_reference(
        "rows", "add_rms_norm", {"x": x, "residual": residual, "weight": weight}, **settings
    )


@pytest.mark.parametrize(("rows", "width"), [(7, 60), (33, 128), (7, 1000)])
def test_bfloat16_errs_no_more_than_its_rounding(assert_matches_reference, rows, width):
    x, residual = torch.randn(2, rows, width, dtype=torch.bfloat16)
    weight = torch.randn(width, dtype=torch.bfloat16)
    assert_matches_reference("rows", "rms_norm", {"x": x, "weight": weight}, eps=EPS)
    assert_matches_reference(
        "rows", "add_rms_norm", {"x": x, "residual": residual, "weight": weight}, eps=EPS
    )


def test_a_float32_weight_serves_bfloat16_rows(assert_matches_reference):
    x = torch.randn(7, 60, dtype=torch.bfloat16)
    assert_matches_reference("rows", "rms_norm", {"x": x, "weight": torch.randn(60)}, eps=EPS)


@pytest.mark.parametrize(("rows", "width"), [(20, 600), (300, 20)])
def test_a_program_loops_over_several_tiles_of_rows(assert_matches_reference, rows, width):
    inputs = {"x": torch.randn(rows, width), "weight": torch.randn(width)}
    assert_matches_reference("rows", "rms_norm", inputs, eps=EPS)


def test_the_norm_is_taken_of_the_sum_as_it_is_stored():
    x, residual = torch.randn(2, 33, 128, dtype=torch.bfloat16)
    weight = torch.randn(128)
    normed, summed = op.add_rms_norm(x, residual, weight, EPS, backend="triton")
    assert torch.equal(normed, op.rms_norm(summed, weight, EPS, backend="triton"))


def test_rows_of_a_wider_projection_are_read_in_place(assert_matches_reference):
    x, residual, _ = torch.randn(2, 3, 180).chunk(3, dim=-1)
    inputs = {"x": x, "residual": residual, "weight": torch.randn(60)}
    assert_matches_reference("rows", "add_rms_norm", inputs, eps=EPS)


def test_the_heads_of_a_wider_projection_are_read_in_place(assert_matches_reference):
    q, _ = torch.randn(2, 3, 180).split([120, 60], dim=-1)
    inputs = {"x": q.unflatten(-1, (4, 30)), "weight": torch.randn(30)}
    assert_matches_reference("rows", "rms_norm", inputs, eps=EPS)


def test_no_rows_give_no_rows_and_no_weight_gradient():
    x, weight = torch.randn(0, 60), torch.randn(60, requires_grad=True)
    y = op.rms_norm(x, weight, EPS, backend="triton")
    y.sum().backward()
    assert y.shape == (0, 60)
    assert torch.equal(weight.grad, torch.zeros(60))


def test_one_output_may_go_unused():
    x, residual = torch.randn(2, 7, 60)
    weight = torch.randn(60)
    for used in (0, 1):
        leaf, same = x.clone().requires_grad_(), x.clone().requires_grad_()
        op.add_rms_norm(leaf, residual, weight, EPS, backend="triton")[used].sum().backward()
        reference.add_rms_norm(same, residual, weight, EPS)[used].sum().backward()
        torch.testing.assert_close(leaf.grad, same.grad)


def test_the_operators_pass_torchs_opcheck():
    x, residual, dy = torch.randn(7, 1, 60), torch.randn(7, 60), torch.randn(7, 60)
    weight, rstd = torch.randn(60), torch.rand(7)
    torch.library.opcheck(norm.rms_norm_backward_op, (dy, None, x, weight, rstd, False))
    torch.library.opcheck(norm.rms_norm_backward_op, (dy, dy, x, weight, rstd, True))
    for leaf in (x, residual, weight):
        leaf.requires_grad_()
    torch.library.opcheck(norm.rms_norm_op, (x, weight, EPS, False))
    torch.library.opcheck(norm.add_rms_norm_op, (x, residual, weight, EPS, True))


def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch):
    compiled = torch.compile(op.add_rms_norm, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, "add_rms_norm", compiled)
    x, residual, _ = torch.randn(2, 3, 180).chunk(3, dim=-1)
    inputs = {"x": x, "residual": residual, "weight": torch.randn(60)}
    assert_matches_reference("rows", "add_rms_norm", inputs, eps=EPS)
