"""FP8 operators against their reference on a GPU: run as `pytest -m gpu tests/kernels/gpu`."""

import pytest
import torch

from archfront.kernels.scaled import op, reference
from archfront.kernels.scaled.configs import FIRST_WITH_E4M3
from archfront.kernels.scaled.reference import ROW, SQUARE, STRIP, TENSOR, TILES


def knows_e4m3():
    if not torch.cuda.is_available():
        return False
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= FIRST_WITH_E4M3


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not knows_e4m3(), reason="needs a CUDA device with e4m3"),
    pytest.mark.usefixtures("nan_filled_empty"),
]
SHAPES = [(1, 1), (17, 100), (1000, 300), (4096, 7168)]
PRODUCTS = [(1, 16, 16), (100, 300, 1000), (1024, 2048, 4096), (4096, 7168, 2048)]


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what a deterministic cuBLAS asks for
    with torch.device("cuda"):
        yield


def uneven(*shape):
    """Numbers of very different sizes, a row of zeros among them."""
    x = torch.randn(shape) * 10.0 ** torch.randint(-4, 4, (shape[0], 1))  # float16 ends at 65504
    x[0] = 0.0
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [STRIP, SQUARE, ROW, TENSOR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_scales_are_the_cpus_to_the_bit(shape, tile, dtype):
    x = uneven(*shape).to(dtype)
    for view in (x, x.T):
        values, scales = op.quantize(view, tile)
        meant_values, meant_scales = reference.quantize(view.cpu(), tile)
        assert torch.equal(values.cpu().view(torch.uint8), meant_values.view(torch.uint8))
        assert torch.equal(scales.cpu(), meant_scales)


@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize(("of_a", "of_b"), [*TILES.values(), (STRIP, STRIP)])
def test_a_product_matches_its_reference(shape, of_a, of_b):
    M, N, K = shape
    factors = *op.quantize(torch.randn(M, K), of_a), *op.quantize(torch.randn(N, K), of_b)
    truth = reference.scaled_matmul(*factors, out_dtype=torch.float64)
    y = op.scaled_matmul(*factors, out_dtype=torch.float32)
    # Hopper sums a block in 13 bits below the largest of its products (arXiv 2412.19437, 3.5.2)
    assert (y - truth).norm() <= 2**-9 * truth.norm()


@pytest.mark.parametrize("shape", PRODUCTS)
def test_integers_are_summed_exactly(shape):
    M, N, K = shape
    a, b = (torch.randint(-1, 2, size).to(torch.float8_e4m3fn) for size in ((M, K), (N, K)))
    one = torch.ones(1, 1)
    y = op.scaled_matmul(a, one, b, one, out_dtype=torch.float32)
    assert torch.equal(y, a.float() @ b.float().T)


@pytest.mark.parametrize("recipe", TILES)
@pytest.mark.parametrize("shape", [(100, 300, 200), (2048, 1024, 512)])
def test_a_linear_layer_matches_its_reference(assert_matches_reference, recipe, shape):
    M, I, O = shape
    inputs = {
        "x": torch.randn(M, I, dtype=torch.bfloat16),
        "weight": torch.randn(O, I, dtype=torch.bfloat16) * I**-0.5,
    }
    assert_matches_reference("scaled", "scaled_linear", inputs, recipe=recipe)


@pytest.mark.parametrize("recipe", TILES)
def test_three_runs_give_the_same_bits(recipe):
    x, weight = (torch.randn(1024, 2048, dtype=torch.bfloat16) for _ in range(2))
    leaves = x.requires_grad_(), weight.requires_grad_()

    def run():
        y = op.scaled_linear(*leaves, recipe)
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code
def test_the_public_api_compiles_into_one_graph():
    x, weight = (torch.randn(256, 512, dtype=torch.bfloat16) for _ in range(2))
    compiled = torch.compile(op.scaled_linear, fullgraph=True)
    assert torch.equal(compiled(x, weight, "blockwise"), op.scaled_linear(x, weight, "blockwise"))
