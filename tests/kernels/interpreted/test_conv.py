import pytest
import torch

from archfront.kernels.rows import conv, conv_step, op

# batch, tokens, channels, taps
SHAPES = [(1, 1, 1, 4), (2, 17, 60, 4), (1, 64, 20, 3), (2, 100, 5, 2), (1, 17, 130, 8)]


def inputs_of(batch, tokens, channels, taps, *, bias=True, dtype=torch.float32):
    x = torch.randn(batch, tokens, channels, dtype=dtype)
    inputs = {"x": x, "weight": torch.randn(channels, taps, dtype=dtype)}
    return inputs | ({"bias": torch.randn(channels, dtype=dtype)} if bias else {})


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_convolution_matches_its_reference(assert_matches_reference, shape, activation):
    assert_matches_reference("rows", "short_conv", inputs_of(*shape), activation=activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(assert_matches_reference, dtype):
    inputs = inputs_of(2, 17, 60, 4, bias=False, dtype=dtype)
    assert_matches_reference("rows", "short_conv", inputs, activation="silu")


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_a_tail_stands_before_the_first_token(assert_matches_reference, tokens):
    tail = torch.randn(2, 3, 20)
    inputs = inputs_of(2, tokens, 20, 4)
    assert_matches_reference("rows", "short_conv", inputs, activation="silu", tail_BWN=tail)


@pytest.mark.parametrize("taps", [2, 4])
def test_no_tap_reaches_into_another_segment(assert_matches_reference, taps):
    segment_ids = torch.randint(0, 2, (2, 33), dtype=torch.int32).cumsum(1, dtype=torch.int32)
    settings = {"activation": "silu", "segment_ids": segment_ids}
    settings["tail_BWN"] = torch.randn(2, taps - 1, 20)
    assert_matches_reference("rows", "short_conv", inputs_of(2, 33, 20, taps), **settings)


def test_packed_segments_give_what_each_gives_alone():
    inputs = inputs_of(1, 30, 20, 4)
    segment_ids = torch.tensor([0] * 11 + [1] * 2 + [2] * 17, dtype=torch.int32)[None]
    x, weight, bias = inputs.values()
    settings = {"activation": "silu", "backend": "triton"}
    packed = op.short_conv(x, weight, bias, segment_ids=segment_ids, **settings)
    alone = [op.short_conv(part, weight, bias, **settings) for part in x.split([11, 2, 17], 1)]
    assert torch.equal(packed, torch.cat(alone, 1))


def test_a_slice_of_a_wider_projection_is_read_in_place(assert_matches_reference):
    inputs = inputs_of(2, 17, 20, 4)
    inputs["x"] = torch.randn(2, 17, 50)[..., 30:]
    assert_matches_reference("rows", "short_conv", inputs, activation="silu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("taps", [2, 4])
def test_token_by_token_equals_all_at_once(taps, dtype):
    x, weight, bias = inputs_of(5, 7, 300, taps, dtype=dtype).values()
    settings = {"activation": "silu", "backend": "triton"}
    tail = torch.zeros(5, taps - 1, 300, dtype=dtype)
    steps = [op.short_conv_step(x[:, t], tail, weight, bias, **settings) for t in range(7)]
    assert torch.equal(torch.stack(steps, 1), op.short_conv(x, weight, bias, **settings))
    assert torch.equal(tail, x[:, 1 - taps :])


def test_no_tokens_give_no_tokens_and_no_weight_gradient():
    x, weight = torch.randn(2, 0, 20), torch.randn(20, 4, requires_grad=True)
    y = op.short_conv(x, weight, activation="silu", backend="triton")
    y.sum().backward()
    assert y.shape == (2, 0, 20)
    assert torch.equal(weight.grad, torch.zeros(20, 4))


def test_the_operators_pass_torchs_opcheck():
    x, weight, bias = inputs_of(2, 5, 6, 2).values()
    tail, segment_ids = torch.randn(2, 1, 6), torch.zeros(2, 5, dtype=torch.int32)
    operands = x, weight, bias, tail, segment_ids, True
    torch.library.opcheck(conv.short_conv_backward_op, (torch.randn_like(x), *operands))
    torch.library.opcheck(conv_step.short_conv_step_op, (x[:, 0], tail, weight, None, True))
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    torch.library.opcheck(conv.short_conv_op, operands)
