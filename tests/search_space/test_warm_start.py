"""Warm starts: candidates of a space near published architectures."""

from dataclasses import replace
from pathlib import Path

import pytest

from archfront.search_space.check import check_space, load_space
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.space import SearchSpace
from archfront.search_space.warm_start import start_near, starts

EXAMPLE = Path(__file__).parents[2] / "examples" / "hybrid-1b.yaml"


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space(EXAMPLE)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("qwen3_next_80b_a3b", ("GE", "GE", "GE", "*E")),
        (
            "kimi_linear_48b",
            ("ME", "ME", "ME", "LE"),
        ),  # the space has no KDA: the first linear mixer
        ("llama3_8b", ("*-",)),
    ],
)
def test_a_start_has_the_layers_of_the_model(
    space: SearchSpace, model: str, layers: tuple[str, ...]
) -> None:
    start = start_near(space, model).architecture
    assert start is not None
    assert "".join(start.symbols).startswith("".join(layers))
    assert start.num_layers in (24, 28, 32)


def test_numbers_take_the_nearest_value(space: SearchSpace) -> None:
    start = start_near(space, "llama3_8b")
    assert start.parameters["layout.layers"] == 32
    assert start.parameters["blocks.*.kv_heads"] == 8
    assert start.parameters["d_model"] == 2048


def test_the_same_model_starts_the_same_candidate(space: SearchSpace) -> None:
    assert start_near(space, "qwen3_next_80b_a3b") == start_near(space, "qwen3_next_80b_a3b")


def test_a_start_without_a_legal_candidate_has_the_rejection(space: SearchSpace) -> None:
    cramped = space.file.budget.model_copy(update={"value": 1e6})  # type: ignore[union-attr]
    none = replace(space, file=space.file.model_copy(update={"budget": cramped}))
    start = start_near(none, "llama3_8b")
    assert start.architecture is None
    assert "budget" in (start.rejection or "")


def test_a_space_file_names_its_starts(small_space: str) -> None:
    text = small_space + "warm_start: [llama3_8b, mixtral_8x7b]\n"
    found = starts(check_space(parse_document(text, source="x.yaml")))
    assert [start.name for start in found] == ["llama3_8b", "mixtral_8x7b"]
    with pytest.raises(InputError, match=r"x.yaml:.*warm_start.0: the atlas has no 'lama'"):
        check_space(parse_document(small_space + "warm_start: [lama]\n", source="x.yaml"))
