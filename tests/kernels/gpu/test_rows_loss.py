"""The chunked loss on a GPU. Without nan_filled_empty, which makes cuBLAS want a variable."""

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.rows import op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def on_the_gpu():
    with torch.device("cuda"):
        yield


def problem(rows, width, vocabulary, dtype):
    target = torch.randint(vocabulary, (rows,))
    target[::5] = -100
    h, weight = torch.randn(rows, width), torch.randn(vocabulary, width) / width**0.5
    return {"h": h.to(dtype), "weight_VD": weight.to(dtype)}, target


@pytest.mark.parametrize("settings", [{}, {"softcap": 30.0}, {"scale": 0.5, "z_loss": 1e-4}])
@pytest.mark.parametrize("shape", [(2, 64, 100), (1000, 256, 5000), (5000, 512, 50_257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_matches_its_reference(assert_matches_reference, shape, dtype, settings):
    inputs, target = problem(*shape, dtype)
    assert_matches_reference("rows", "linear_cross_entropy", inputs, target=target, **settings)


def test_three_runs_give_the_same_bits():
    inputs, target = problem(5000, 512, 32_000, torch.bfloat16)
    leaves = [x.requires_grad_() for x in inputs.values()]

    def run():
        loss = op.linear_cross_entropy(*leaves, target)
        return loss, *torch.autograd.grad(loss, leaves)

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_the_peak_is_a_tenth_of_the_plain_implementations():
    inputs, target = problem(16_384, 1024, 65_536, torch.bfloat16)
    h, weight = (x.requires_grad_() for x in inputs.values())

    def plain():
        return F.cross_entropy((h @ weight.T).float(), target)

    peaks = []
    for implementation in (lambda: op.linear_cross_entropy(h, weight, target), plain):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(implementation(), (h, weight))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] <= peaks[1] / 10
