"""FP8 rounding: exact values, tiles, gradients."""

import pytest
import torch

from archfront.builders.precision import ROW, TILES, encode, quantized


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_values_round_to_the_nearest_scaled_e4m3_number() -> None:
    # amax 448 gives scale 1; from 16 to 32 e4m3 has steps of 2, ties go to even
    found = quantized(row(448.0, 17.0, 19.0, 18.9, -0.3), ROW)
    assert found.tolist() == row(448.0, 16.0, 20.0, 18.0, -0.3125).tolist()


def test_small_values_round_to_subnormals_and_zero() -> None:
    smallest = 2.0**-9
    found = quantized(row(448.0, 1.4 * smallest, 0.4 * smallest), ROW)
    assert found.tolist() == row(448.0, smallest, 0.0).tolist()


def test_the_scale_is_amax_over_448() -> None:
    values, scale = encode(row(-3.5, 1.75, 0.0), (-1,))
    assert scale.item() == 3.5 / 448
    assert values.float().tolist() == [[-448.0, 224.0, 0.0]]


def test_zeros_stay_zeros() -> None:
    assert quantized(torch.zeros(3, 5), ROW).tolist() == torch.zeros(3, 5).tolist()


@pytest.mark.parametrize(
    ("recipe", "scales_of_x", "scales_of_weight"),
    [("tensorwise", 1, 1), ("rowwise", 130, 130), ("blockwise", 130 * 3, 2 * 3)],
)
def test_a_recipe_has_one_scale_per_tile(
    recipe: str, scales_of_x: int, scales_of_weight: int
) -> None:
    """An outlier rounds the other numbers of its tile to zero, and no others."""
    generator = torch.Generator().manual_seed(0)
    for tile, tiles in zip(TILES[recipe], (scales_of_x, scales_of_weight), strict=True):
        x = torch.rand(130, 260, generator=generator) + 1
        touched = quantized(x, tile).clone()
        x[0, 0] = 1e8
        touched = quantized(x, tile) == 0
        rows, columns = tile[0] or 130, tile[1] or 260
        assert touched[:rows, :columns].sum() == rows * columns - 1
        assert touched.sum() == rows * columns - 1
        assert -(-130 // rows) * -(-260 // columns) == tiles


def test_matrices_of_a_stack_have_separate_scales() -> None:
    x = torch.ones(2, 4, 4)
    x[0] *= 1e8
    assert quantized(x, TILES["tensorwise"][1])[1].tolist() == x[1].tolist()


def test_the_gradient_is_straight_through() -> None:
    x = torch.randn(3, 200, requires_grad=True)
    slope = torch.randn(3, 200)
    (quantized(x, (1, 128)) * slope).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == slope.tolist()
