import pytest
import torch

from archfront.kernels.rows import loss, op, reference

KINDS = [{}, {"softcap": 3.0}, {"scale": 0.5, "z_loss": 0.1}]


def problem(rows, width, vocabulary, *, dtype=torch.float32, ignored=0.2):
    target = torch.randint(vocabulary, (rows,))
    target[torch.rand(rows) < ignored] = -100
    h, weight = torch.randn(rows, width), torch.randn(vocabulary, width) / width**0.5
    return {"h": h.to(dtype), "weight": weight.to(dtype)}, target


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 16, 3), (17, 20, 100), (7, 8, 9000)])
def test_the_loss_matches_its_reference(
    assert_matches_reference, rows, width, vocabulary, settings
):
    inputs, target = problem(rows, width, vocabulary, ignored=0.2 if rows > 1 else 0)
    assert_matches_reference("rows", "linear_cross_entropy", inputs, target=target, **settings)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(assert_matches_reference, dtype, settings):
    inputs, target = problem(100, 32, 300, dtype=dtype)
    assert_matches_reference("rows", "linear_cross_entropy", inputs, target=target, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_are_one_sum(assert_matches_reference, monkeypatch, dtype):
    monkeypatch.setattr(loss, "FEWEST_ROWS", 1)
    inputs, target = problem(50, 16, 60, dtype=dtype)
    assert loss.chunk_rows(50, 60) == 4
    assert_matches_reference("rows", "linear_cross_entropy", inputs, target=target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_gets_its_gradient(dtype):
    inputs, target = problem(17, 16, 60, dtype=dtype)
    bias = torch.randn(60, dtype=dtype).requires_grad_()
    same = bias.detach().clone().requires_grad_()
    ours = op.linear_cross_entropy(**inputs_of(inputs), target=target, bias=bias, backend="triton")
    plain = reference.linear_cross_entropy(**inputs_of(inputs), target=target, bias=same)
    (3 * ours).backward()
    (3 * plain).backward()
    torch.testing.assert_close((ours, bias.grad), (plain, same.grad))


def inputs_of(inputs):
    return {"h": inputs["h"], "weight_VD": inputs["weight"]}


def test_a_batch_of_sequences_is_taken_as_it_is(assert_matches_reference):
    h, target = torch.randn(2, 5, 16), torch.randint(60, (2, 5))
    inputs = {"h": h, "weight": torch.randn(60, 16)}
    assert_matches_reference("rows", "linear_cross_entropy", inputs, target=target)


def test_a_target_outside_the_vocabulary_gives_nan():
    h, weight = torch.randn(2, 16), torch.randn(60, 16)
    for target in (60, -1):
        value = op.linear_cross_entropy(h, weight, torch.tensor([3, target]), backend="triton")
        assert value.isnan()


def test_without_a_target_there_is_no_loss_and_no_gradient():
    h, weight = torch.randn(7, 16, requires_grad=True), torch.randn(60, 16)
    nowhere = torch.full((7,), -100)
    value = op.linear_cross_entropy(h, weight, nowhere, backend="triton")
    value.backward()
    assert value == 0
    assert torch.equal(h.grad, torch.zeros(7, 16))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_operator_passes_torchs_opcheck(backend):
    inputs, target = problem(7, 16, 60)
    h, weight = (x.requires_grad_() for x in inputs.values())
    bias = torch.randn(60, requires_grad=True)
    operands = h, weight, target, bias, 0.5, 3.0, 0.1
    torch.library.opcheck(loss.linear_cross_entropy_op, (*operands, True, backend))
