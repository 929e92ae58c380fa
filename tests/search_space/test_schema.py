"""The JSON Schemas accept what the reader accepts, and describe every field."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_spaces import BAD
from jsonschema import Draft202012Validator

from archfront.search_space.check import check_space
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.schema import architecture_schema, space_markdown, space_schema

ROOT = Path(__file__).parents[2]
ATLAS = files("archfront.search_space").joinpath("atlas")
BAD_INPUTS = Path(__file__).parents[3] / "shared" / "cases" / "bad-inputs"
SPACE = Draft202012Validator(space_schema())
ARCHITECTURE = Draft202012Validator(architecture_schema())
NOT_YAML = {"tab", "invalid yaml", "duplicate key", "anchor", "free without budget", "python tag"}
NOT_IN_A_SCHEMA = {
    "range": "an order of two items",
    "range step": "a quotient of items",
    "contradiction": "a value that another field must be able to take",
    "condition too early": "the order in which fields are drawn",
    "unreachable budget": "the outcome of draws",
    "impossible constraint": "the outcome of draws",
    "objective of no workload": "a name that another field defines",
    "symbol without block": "a name that another field defines",
    "c05_nan_constraint": "JSON has no NaN",
    "c12b_wide_range": "a quotient of items",
}


def readme_space() -> str:
    return (ROOT / "README.md").read_text().split("```yaml\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize("schema", [space_schema(), architecture_schema()])
def test_a_schema_is_valid_and_describes_every_field(schema: dict) -> None:
    Draft202012Validator.check_schema(schema)
    missing = [where for where, field in _fields(schema, "") if not field.get("description")]
    assert missing == []


def _fields(schema: Any, where: str) -> Iterator[tuple[str, dict]]:
    """Every field of every object.

    Those of conditions (`if`, `not`) and those with a type alone restrict a field described
    elsewhere.
    """
    if isinstance(schema, list):
        for inner in schema:
            yield from _fields(inner, where)
    elif isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            if not field.get("$ref", "").endswith("When") and field.keys() - {"type"}:
                yield f"{where}.{name}", field
        for name, inner in schema.items():
            if name not in ("if", "not", "enum", "const", "default"):
                yield from _fields(inner, f"{where}.{name}" if name != "properties" else where)


@pytest.mark.parametrize("name", ["tiny", "hybrid-1b"])
def test_a_space_that_ships_is_valid(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.yaml").read_text()
    SPACE.validate(yaml.safe_load(text))


def test_the_space_of_the_readme_is_valid() -> None:
    SPACE.validate(yaml.safe_load(readme_space()))
    assert check_space(parse_document(readme_space(), source="README.md"))


def test_an_architecture_that_ships_is_valid() -> None:
    ARCHITECTURE.validate(yaml.safe_load((ROOT / "examples" / "all_blocks.yaml").read_text()))


@pytest.mark.parametrize("path", list(ATLAS.iterdir()), ids=lambda path: path.name)
def test_an_entry_of_the_atlas_is_valid(path: Path) -> None:
    plain = yaml.safe_load(path.read_text())
    ARCHITECTURE.validate(plain)
    ARCHITECTURE.validate(plain["architecture"])


@pytest.mark.parametrize("case", sorted(set(BAD) - NOT_YAML))
def test_a_bad_space_is_invalid_where_a_schema_can_say_so(tiny_space: str, case: str) -> None:
    old, new, _ = BAD[case]
    plain = yaml.safe_load(tiny_space.replace(old, new, 1))
    assert SPACE.is_valid(plain) == (case in NOT_IN_A_SCHEMA)


@pytest.mark.skipif(not BAD_INPUTS.exists(), reason="the bad inputs are not beside this clone")
@pytest.mark.parametrize("path", sorted(BAD_INPUTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_input_is_invalid_and_rejected(path: Path) -> None:
    text = path.read_text()
    assert SPACE.is_valid(yaml.safe_load(text)) == (path.stem in NOT_IN_A_SCHEMA)
    with pytest.raises(InputError):
        check_space(parse_document(text, source=path.name))


@pytest.mark.parametrize(
    "block",
    [
        {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16, "width": 8},
        {"kind": "attn", "heads": 4, "kv_heads": 2},
        {"kind": "attn", "heads": 0, "kv_heads": 2, "head_dim": 16},
        {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16, "rope": {"partial": 2}},
        {"kind": "attn", "heads": {"choices": [4]}, "kv_heads": 2, "head_dim": 16},
        {"heads": 4, "kv_heads": 2, "head_dim": 16},
    ],
)
def test_a_bad_block_of_an_architecture_is_invalid(block: dict) -> None:
    plain = {"d_model": 64, "vocab_size": 256, "pattern": "*", "blocks": {"*": block}}
    assert not ARCHITECTURE.is_valid(plain)


def test_further_fields_beside_an_architecture_are_ignored_as_by_the_reader() -> None:
    plain = yaml.safe_load((ROOT / "examples" / "all_blocks.yaml").read_text())
    ARCHITECTURE.validate(plain | {"notes": "ours", "seed": 3})
    assert not ARCHITECTURE.is_valid(plain | {"profile": {"workloads": ["chat-5k"]}})


def test_a_budget_and_a_free_width_need_each_other(small_space: str) -> None:
    plain = yaml.safe_load(small_space)
    SPACE.validate(plain)
    assert not SPACE.is_valid({name: plain[name] for name in plain if name != "budget"})
    plain["architecture"]["blocks"]["-"]["width"] = 512
    assert not SPACE.is_valid(plain)
    SPACE.validate(plain | {"budget": None})


def test_the_reference_of_the_fields_is_current() -> None:
    assert (ROOT / "docs" / "SPACE.md").read_text() == space_markdown()
