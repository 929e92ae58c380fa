"""The atlas at the command line: list, show, compare, import, export."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ARCHFRONT = Path(sys.executable).with_name("archfront")


def archfront(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ARCHFRONT), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def plain(*arguments: object, cwd: Path) -> dict[str, Any]:
    ended = archfront(*arguments, "--json", cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_list_has_every_model_with_its_counts(tmp_path: Path) -> None:
    models = {model["id"]: model for model in plain("atlas", "list", cwd=tmp_path)["models"]}
    assert len(models) == 66
    assert models["llama3_8b"]["counted"]["total"] == 8_030_261_248
    assert models["qwen3_next_80b_a3b"]["pattern"] == "(GEGEGE*E)x12"
    table = archfront("atlas", "list", cwd=tmp_path).stdout
    assert "8,030,261,248" in table
    assert "ends with" not in table


def test_cache_sizes_follow_context_batch_and_precision(tmp_path: Path) -> None:
    asked = ["--context", 1000, "--batch", 3, "--kv", "int8"]
    at = plain("atlas", "show", "llama3_8b", *asked, cwd=tmp_path)["cache"]["at"]
    bytes_per_token = (
        32 * 8 * (2 * 128 + 2 * 4)
    )  # layers, heads, int8 keys and values and their scales
    assert at["bytes_per_sequence"] == 1000 * bytes_per_token
    assert at["bytes"] == 3 * 1000 * bytes_per_token


def test_mtp_modules_are_counted_with_mtp(tmp_path: Path) -> None:
    without, within = (
        plain("atlas", "show", "deepseek_v3", *flag, cwd=tmp_path)["counted"]["total"]
        for flag in ([], ["--mtp"])
    )
    assert without == 671_026_404_352
    assert within > without


def test_published_models_are_compared_without_a_store(tmp_path: Path) -> None:
    compared = plain("compare", "qwen3_8b", "falcon_h1_7b", "--context", 32_768, cwd=tmp_path)
    names = [{m["name"] for m in a["measurements"]} for a in compared["architectures"]]
    assert all({"total_params", "decode_ms", "kv_bytes_per_token"} <= found for found in names)
    assert list(tmp_path.iterdir()) == []


def test_a_model_exported_as_config_json_imports_as_the_same(tmp_path: Path) -> None:
    out = archfront("atlas", "export", "qwen3_next_80b_a3b", "-o", "config.json", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    back = plain("atlas", "import", "config.json", cwd=tmp_path)
    assert back["key"] == plain("atlas", "show", "qwen3_next_80b_a3b", cwd=tmp_path)["key"]
    assert archfront("atlas", "import", "config.json", "-o", "a.yaml", cwd=tmp_path).returncode == 0
    assert archfront("atlas", "import", "config.json", "-o", "a.yaml", cwd=tmp_path).returncode == 2
    assert plain("compare", "a.yaml", cwd=tmp_path)["architectures"][0]["key"] == back["key"]


def test_an_import_lists_what_an_architecture_cannot_express(tmp_path: Path) -> None:
    config = json.loads(archfront("atlas", "export", "qwen3_8b", cwd=tmp_path).stdout)
    config["resid_pdrop_schedule"] = "cosine"
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = archfront("atlas", "import", "config.json", cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == 'config.json: not expressed: resid_pdrop_schedule="cosine"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["atlas", "show", "llama3_9b"], "the atlas has no 'llama3_9b'; did you mean 'llama3_8b'"),
        (["atlas", "show", "llama3_8b", "--context", "0"], "--context"),
        (["atlas", "import", "config.jsn"], "config.jsn: no such file; did you mean 'config.json'"),
        (
            ["atlas", "import", "config.json"],
            "config.json: not valid JSON: Expecting value: line 2",
        ),
        (["atlas", "import", "."], "is a folder, expected a JSON file"),
        (["atlas", "export", "moba_llama_8b"], "no family of Hugging Face can express"),
        (["atlas", "export", "qwen3_8b", "--model-type", "lama"], "did you mean 'llama'"),
        (["compare", "qwen4_8b"], "neither a YAML file, nor in the atlas; did you mean 'qwen3_8b'"),
    ],
)
def test_bad_input_exits_with_2_and_a_message(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama",\n "heads": }')
    ended = archfront(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr.replace("│", "")
