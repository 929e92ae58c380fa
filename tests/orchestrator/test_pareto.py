"""Pareto fronts against the definition of dominance, on random problems with many ties."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archfront.orchestrator import pareto

# A coarse grid, so that ties and duplicates are common.
GRID = st.integers(0, 5).map(float)


@st.composite
def problems(draw, least=0):
    objectives = draw(st.integers(1, 4))
    signs = draw(st.lists(st.sampled_from([1, -1]), min_size=objectives, max_size=objectives))
    point = st.lists(GRID, min_size=objectives, max_size=objectives)
    return draw(st.lists(point, min_size=least, max_size=30)), signs


def dominates(a, b, signs):
    a, b = np.array(a) * signs, np.array(b) * signs
    return bool((a <= b).all() and (a < b).any())


def front_of(values, signs):
    """What no other dominates, by the definition."""
    return [v for v in values if not any(dominates(other, v, signs) for other in values)]


@given(problems())
def test_admitting_one_by_one_gives_the_front_of_all(problem):
    values, signs = problem
    front: list[list[float]] = []
    for value in values:
        enters, leaves = pareto.admit(front, value, signs)
        assert enters or not leaves.any()
        front = [v for v, out in zip(front, leaves, strict=True) if not out] + [value] * enters
    assert sorted(front) == sorted(front_of(values, signs))


def test_the_hypervolume_is_the_fraction_of_the_box_that_is_dominated():
    # Two corners of a 4 x 10 box, recall higher: 3 x 5 + 1 x 3 of 40 cells.
    values = [[1.0, 5.0], [3.0, 8.0]]
    assert pareto.hypervolume(values, (1, -1), ideal=[0, 10], reference=[4, 0]) == pytest.approx(
        18 / 40
    )


def test_values_outside_the_box_are_clipped():
    box = {"ideal": [0, 0], "reference": [4, 4]}
    assert pareto.hypervolume([[-9.0, -9.0]], (1, 1), **box) == 1
    assert pareto.hypervolume([[0.0, 4.0], [5.0, 0.0]], (1, 1), **box) == 0
    assert pareto.hypervolume([[-9.0, 2.0]], (1, 1), **box) == pytest.approx(0.5)
    assert pareto.hypervolume([], (1, 1), **box) == 0


@given(problems(least=1), st.integers(0, 30))
def test_the_hypervolume_lies_in_0_to_1_and_never_falls(problem, count):
    values, signs = problem
    ideal, reference = pareto.box(values[: count + 1], signs)
    volumes = [
        pareto.hypervolume(values[:n], signs, ideal, reference) for n in range(len(values) + 1)
    ]
    assert volumes[0] == 0
    assert 0 < volumes[-1] <= 1 or count + 1 < len(values)
    assert all(0 <= a <= b + 1e-12 <= 1 + 2e-12 for a, b in pairwise(volumes))


def test_the_box_leaves_slack_behind_and_room_ahead_but_not_below_zero():
    ideal, reference = pareto.box([[10.0, 0.2, 1.0], [30.0, 0.6, 3.0]], (1, -1, 1))
    assert reference == pytest.approx([32.0, 0.16, 3.2])
    assert ideal == pytest.approx([0.0, 0.8, 0.0])


def test_the_box_has_a_volume_even_where_an_objective_did_not_vary():
    ideal, reference = pareto.box([[5.0, 0.0]], (1, -1))
    assert pareto.hypervolume([[5.0, 0.0]], (1, -1), ideal, reference) > 0


def test_the_knee_is_the_deepest_point_below_the_chord():
    # The chord runs from (0, 100) to (10, 0); units do not matter, nor do dominated points.
    values = [[0.0, 100.0], [6.0, 30.0], [2.0, 30.0], [2.5, 29.0], [10.0, 0.0]]
    assert pareto.knee(values, (1, 1)) == 2
    assert pareto.knee([[a, -b] for a, b in values], (1, -1)) == 2
    assert pareto.knee([[1.0, 1.0]], (1, 1)) == 0


@given(problems(least=1))
def test_the_knee_is_on_the_front(problem):
    values, signs = problem
    assert values[pareto.knee(values, signs)] in front_of(values, signs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_raise(bad):
    values, signs = [[1.0, 2.0], [bad, 1.0]], (1, 1)
    for function in (pareto.knee, pareto.box):
        with pytest.raises(ValueError, match="finite"):
            function(values, signs)
    with pytest.raises(ValueError, match="finite"):
        pareto.hypervolume(values, signs, [0, 0], [9, 9])
    with pytest.raises(ValueError, match="finite"):
        pareto.admit(values[:1], values[1], signs)


def test_values_of_another_number_of_objectives_raise():
    with pytest.raises(ValueError, match="2 objectives"):
        pareto.knee([[1.0, 2.0, 3.0]], (1, 1))


@pytest.mark.parametrize("function", [pareto.knee, pareto.box])
def test_the_knee_and_the_box_of_no_candidates_raise(function):
    with pytest.raises(ValueError, match="at least one"):
        function([], (1, 1))
