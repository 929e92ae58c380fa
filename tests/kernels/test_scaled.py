"""FP8 operators on the CPU: torch implementation, input checks of the kernels."""

import pytest
import torch

from archfront.builders import precision
from archfront.kernels.requirements import Unsupported
from archfront.kernels.scaled import op, reference
from archfront.kernels.scaled.configs import config_for
from archfront.kernels.scaled.reference import ROW, SQUARE, STRIP, TENSOR, TILES

AWKWARD = [(1, 1), (17, 100), (130, 300), (128, 256)]


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def uneven(*shape):
    """Numbers of very different sizes, a row of zeros among them."""
    x = torch.randn(shape) * 10.0 ** torch.randint(-6, 6, (shape[0], 1))
    x[0] = 0.0
    return x


@pytest.mark.parametrize("shape", AWKWARD)
@pytest.mark.parametrize("tile", [STRIP, SQUARE, ROW, TENSOR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_scales_are_those_of_the_builders_simulation(shape, tile, dtype):
    x = uneven(*shape).to(dtype)
    decoded = reference.decode(*op.quantize(x, tile), torch.float32)
    assert torch.equal(decoded.to(dtype), precision.quantized(x, tile))


def test_a_tile_has_one_scale_that_takes_its_largest_value_to_the_largest_number():
    x = torch.ones(2, 200)
    x[0, 7], x[1, 150] = -896.0, 4.48
    values, scales = op.quantize(x, STRIP)
    torch.testing.assert_close(scales, torch.tensor([[2.0, 1 / 448], [1 / 448, 0.01]]))
    assert (values[0, 7].float(), values[1, 150].float()) == (-448.0, 448.0)


def test_zeros_stay_zeros():
    values, scales = op.quantize(torch.zeros(3, 130), SQUARE)
    assert scales.min() > 0
    assert values.float().count_nonzero() == 0


def test_columns_in_strips_are_the_rows_of_the_transposed_matrix():
    x = uneven(130, 60)
    values, scales = op.quantize(x.T, STRIP)
    assert (values.shape, scales.shape) == ((60, 130), (60, 2))
    assert torch.equal(scales[:, 1], x[128:].abs().amax(0).clamp(min=1e-12) / 448.0)


@pytest.mark.parametrize(("of_a", "of_b"), [*TILES.values(), (STRIP, STRIP), (ROW, SQUARE)])
def test_a_product_is_that_of_the_decoded_matrices(of_a, of_b):
    a, b = torch.randn(17, 300), torch.randn(140, 300)
    y = op.scaled_matmul(*op.quantize(a, of_a), *op.quantize(b, of_b), out_dtype=torch.float32)
    assert torch.equal(y, precision.quantized(a, of_a) @ precision.quantized(b, of_b).T)


@pytest.mark.parametrize("recipe", TILES)
def test_a_linear_layer_is_the_builders_simulation(recipe):
    x, weight = torch.randn(2, 9, 200, dtype=torch.bfloat16), torch.randn(60, 200).bfloat16()
    of_x, of_weight = precision.TILES[recipe]
    rounded = precision.quantized(x.flatten(0, 1).float(), of_x)
    simulated = rounded @ precision.quantized(weight.float(), of_weight).T
    y = op.scaled_linear(x, weight, recipe)
    assert torch.equal(y, simulated.bfloat16().view(2, 9, 60))


@pytest.mark.parametrize("recipe", TILES)
def test_both_gradients_are_products_of_rounded_factors(recipe):
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((150, 60), (40, 60)))
    dy = torch.randn(150, 40)
    of_x, of_weight = TILES[recipe]
    rounded = precision.quantized
    dx = rounded(dy, of_x) @ rounded(weight.T, of_weight).T
    dweight = rounded(dy.T, of_x) @ rounded(x.T, of_x).T
    ours = torch.autograd.grad(op.scaled_linear(x, weight, recipe), (x, weight), dy)
    torch.testing.assert_close(ours, (dx, dweight))


@pytest.mark.parametrize("recipe", TILES)
def test_rounding_costs_a_linear_layer_a_few_percent(recipe):
    x, weight = torch.randn(64, 512), torch.randn(256, 512)
    y, exact = op.scaled_linear(x, weight, recipe), x @ weight.T
    assert 0.005 < (y - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("backend", ["torch", "triton", None])
def test_a_meta_tensor_gives_shapes(backend):
    x, weight = meta(2, 9, 200).requires_grad_(), meta(60, 200).requires_grad_()
    y = op.scaled_linear(x, weight, "blockwise", backend=backend)
    y.sum().backward()
    assert (y.shape, y.dtype) == ((2, 9, 60), torch.bfloat16)
    assert (x.grad.shape, weight.grad.shape) == (x.shape, weight.shape)


def product(a=(17, 256), b=(40, 256), of_a=(17, 2), of_b=(1, 2), dtype=torch.float8_e4m3fn):
    a_scales, b_scales = (meta(*shape, dtype=torch.float32) for shape in (of_a, of_b))
    a, b = meta(*a, dtype=dtype), meta(*b, dtype=dtype)
    return op.scaled_matmul(a, a_scales, b, b_scales, out_dtype=torch.bfloat16, backend="triton")


UNSUPPORTED = {
    r"the tile one of \(1, 128\).*tile=\(2, 128\)": lambda: op.quantize(
        meta(4, 8), (2, 128), backend="triton"
    ),
    r"x must be a matrix with elements.*shape=\(0, 8\)": lambda: op.quantize(
        meta(0, 8), STRIP, backend="triton"
    ),
    "x must be float32, bfloat16 or float16.*float64": lambda: op.quantize(
        meta(4, 8, dtype=torch.float64), STRIP, backend="triton"
    ),
    "needs a CUDA tensor.*device=cpu": lambda: op.quantize(
        torch.empty(4, 8), STRIP, backend="triton"
    ),
    "float8_e4m3fn matrices.*bfloat16": lambda: product(dtype=torch.bfloat16),
    r"rows of one length, got b=\(40, 255\)": lambda: product(b=(40, 255)),
    r"scales of a must be float32.*its 17 rows.*scales=\(16, 2\)": lambda: product(of_a=(16, 2)),
    r"scales of b.*of its 256 columns, got scales=\(1, 3\)": lambda: product(of_b=(1, 3)),
}


@pytest.mark.parametrize("constraint", UNSUPPORTED)
def test_the_kernels_reject_unsupported_inputs(constraint):
    with pytest.raises(Unsupported, match=constraint):
        UNSUPPORTED[constraint]()


def test_an_architecture_without_e4m3_is_unsupported_with_an_alternative():
    with pytest.raises(Unsupported, match=r"sm_89 or newer, backend='torch' simulates it.*sm_80"):
        config_for("sm_80", "matmul")
