import pytest
import torch

from archfront.kernels.scaled import op, reference
from archfront.kernels.scaled.matmul import scaled_matmul_op
from archfront.kernels.scaled.quantize import quantize_op
from archfront.kernels.scaled.reference import ROW, SQUARE, STRIP, TENSOR, TILES

TILE_NAMES = {"strips": STRIP, "squares": SQUARE, "row": ROW, "tensor": TENSOR}


def bits(values):
    return values.view(torch.uint8)


def uneven(*shape):
    """Numbers of very different sizes, a row of zeros among them."""
    x = torch.randn(shape) * 10.0 ** torch.randint(-6, 6, (shape[0], 1))
    x[0] = 0.0
    return x


def assert_same_bits(x, tile):
    ours, expected = op.quantize(x, tile, backend="triton"), reference.quantize(x, tile)
    assert torch.equal(bits(ours[0]), bits(expected[0]))
    assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize("shape", [(1, 1), (17, 100), (130, 300), (64, 128)])
@pytest.mark.parametrize("tile", TILE_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_scales_are_the_references_to_the_bit(shape, tile, dtype):
    assert_same_bits(uneven(*shape).to(dtype), TILE_NAMES[tile])


@pytest.mark.parametrize("tile", TILE_NAMES)
def test_a_transposed_view_is_read_in_place(tile):
    assert_same_bits(uneven(60, 140).bfloat16().T, TILE_NAMES[tile])


def test_an_expanded_gradient_is_read_in_place():
    assert_same_bits(torch.tensor(3.0).expand(17, 130), STRIP)


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 100, 300), (70, 130, 144)])
@pytest.mark.parametrize(
    ("of_a", "of_b"), [*TILES.values(), (STRIP, STRIP), (ROW, SQUARE), (SQUARE, ROW)]
)
def test_a_product_matches_its_reference(shape, of_a, of_b):
    M, N, K = shape
    factors = *reference.quantize(uneven(M, K), of_a), *reference.quantize(torch.randn(N, K), of_b)
    truth = reference.scaled_matmul(*factors, out_dtype=torch.float64)
    y = op.scaled_matmul(*factors, out_dtype=torch.float32, backend="triton")
    assert (y - truth).norm() <= 1e-6 * truth.norm()


def test_a_product_of_integers_is_exact():
    a, b = torch.randint(-8, 9, (33, 200)), torch.randint(-8, 9, (40, 200))
    values = (x.to(torch.float8_e4m3fn) for x in (a, b))
    one = torch.ones(1, 1)
    factors = next(values), one, next(values), one
    y = op.scaled_matmul(*factors, out_dtype=torch.float32, backend="triton")
    assert torch.equal(y, (a @ b.T).float())


@pytest.mark.parametrize("recipe", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_matches_its_reference(assert_matches_reference, recipe, dtype):
    inputs = {"x": torch.randn(33, 100, dtype=dtype), "weight": torch.randn(60, 100, dtype=dtype)}
    assert_matches_reference("scaled", "scaled_linear", inputs, recipe=recipe)


def test_leading_dimensions_are_rows():
    x, weight = torch.randn(2, 3, 100), torch.randn(60, 100)
    y = op.scaled_linear(x, weight, "blockwise", backend="triton")
    flat = op.scaled_linear(x.flatten(0, 1), weight, "blockwise", backend="triton")
    assert torch.equal(y, flat.view(2, 3, 60))


def test_the_operators_pass_torchs_opcheck():
    x = torch.randn(17, 130)
    for tile in TILE_NAMES.values():  # test_schema multiplies, which e4m3 cannot
        torch.library.opcheck(quantize_op, (x, *tile), test_utils=["test_faketensor"])
    factors = *quantize_op(x, *STRIP), *quantize_op(x, *SQUARE)
    arguments = *factors, torch.bfloat16
    torch.library.opcheck(scaled_matmul_op, arguments, test_utils=["test_faketensor"])


@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated")  # torch's own tracer
def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch):
    compiled = torch.compile(op.scaled_linear, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, "scaled_linear", compiled)
    inputs = {"x": torch.randn(3, 20), "weight": torch.randn(16, 20)}
    assert_matches_reference("scaled", "scaled_linear", inputs, recipe="blockwise")
