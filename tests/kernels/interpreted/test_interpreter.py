"""The repairs of the interpreter in conftest.py."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def cast(x_ptr, y_ptr, SIZE: tl.constexpr):
    col = tl.arange(0, SIZE)
    x = tl.load(x_ptr + col)
    tl.store(y_ptr + col, x.to(y_ptr.dtype.element_ty))


@triton.jit
def product(a_ptr, b_ptr, y_ptr, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)[:, None]
    at = row * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(y_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@triton.jit
def sum_without_other(x_ptr, y_ptr, length, SIZE: tl.constexpr):
    col = tl.arange(0, SIZE)
    x = tl.load(x_ptr + col, mask=col < length)
    tl.store(y_ptr, tl.sum(x, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_cast_rounds_and_saturates_as_torch_does(dtype):
    x = torch.randn(64) * 10.0 ** torch.randint(-4, 5, (64,))
    y = torch.zeros(64).to(dtype)
    cast[(1,)](x, y, SIZE=64)
    assert torch.equal(y.float(), x.to(dtype).float())


def test_a_bfloat16_product_accumulates_in_float32():
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    y = torch.empty(16, 16)
    product[(1,)](a, b, y, SIZE=16)
    torch.testing.assert_close(y, a.float() @ b.float())


def test_what_a_mask_hides_is_nan_without_other():
    y = torch.empty(1)
    sum_without_other[(1,)](torch.ones(4), y, 3, SIZE=4)
    assert y.isnan().all()


def test_an_empty_tensor_is_filled_with_nan():
    assert torch.empty(3).isnan().all()
    assert torch.ones(3).new_empty(3).isnan().all()
