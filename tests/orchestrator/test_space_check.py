"""`archfront space`: choices without kernels, and the JSON Schema of space files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archfront.search_space.schema import architecture_schema, space_schema

ARCHFRONT = Path(sys.executable).with_name("archfront")


def check(folder: Path, text: str, *options: str) -> str:
    (folder / "space.yaml").write_text(text)
    command = [str(ARCHFRONT), "space", "check", "space.yaml", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_space_with_all_kernels_names_the_architecture_of_its_target(
    tmp_path: Path, small_space: str
) -> None:
    assert "every choice has a kernel on sm_90" in check(tmp_path, small_space)


def test_a_choice_without_a_kernel_is_shown_with_the_kernels_constraint(
    tmp_path: Path, small_space: str
) -> None:
    cached = small_space.replace("[ffn.up, ffn.down]", "[kv_cache]")
    cached = cached.replace("profile:", "profile:\n  target: a100_sxm_80gb")
    table = check(tmp_path, cached)
    constraint = "decode_split in float8_e4m3fn does not run on sm_80, got K=32, V=32"
    assert f"precision.fp8 ['kv_cache'] cannot run on sm_80 (decode): {constraint}" in table
    (plain,) = json.loads(check(tmp_path, cached, "--json"))["without_kernel"]
    assert (plain["choice"], plain["arch"], plain["constraints"]) == (
        "precision.fp8",
        "sm_80",
        {"decode": constraint},
    )


@pytest.mark.parametrize(
    ("options", "expected"), [([], space_schema), (["--architecture"], architecture_schema)]
)
def test_space_schema_prints_a_json_schema(
    tmp_path: Path, options: list[str], expected: Callable[[], dict[str, Any]]
) -> None:
    command = [str(ARCHFRONT), "space", "schema", *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == expected()
