"""`archfront profile` and `archfront calibrate`: their output, and bad input."""

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from archfront.orchestrator.cli.app import app
from archfront.profilers.cost.shipped import shipped
from archfront.profilers.device import device
from archfront.profilers.timing.calibrate import SHAPES, points_of
from archfront.profilers.timing.calibration import Calibration
from archfront.search_space.document import InputError

SMALL = """
architecture:
  d_model: 64
  vocab_size: 256
  pattern: "(G-)x2*-"
  blocks:
    G: {kind: gdn, k_heads: 2, v_heads: 2, k_head_dim: 16, v_head_dim: 16}
    "*": {kind: attn, heads: 2, kv_heads: 1, head_dim: 32}
    "-": {kind: ffn, width: 128}
"""
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def message(result: Result) -> str:
    """The one-line error message of a command that failed."""
    assert isinstance(result.exception, InputError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def values(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return {m["name"]: m for m in json.loads(result.stdout)["measurements"]}


def h200(slower: float) -> Calibration:
    row = device("h200_sxm")
    import torch

    calls = [c for name in SHAPES for c in points_of(SHAPES[name], row, 30, torch.device("cuda"))]
    seconds = slower * shipped().times(calls, row).seconds
    timings = tuple(zip(calls, seconds.tolist(), strict=True))
    return Calibration(device=row, software={}, timings=timings)


class TestProfile:
    def test_a_published_model_is_priced_and_nothing_is_trained(self, run: Run) -> None:
        found = values(run("profile", "qwen3_next_80b_a3b", "--json"))
        assert found["decode_ms"]["provenance"] == "estimated"
        assert "bits_per_byte" not in found

    def test_the_explanation_shows_layers_operators_and_what_figures_are_based_on(
        self, run: Run
    ) -> None:
        result = run(
            "profile",
            "qwen3_next_80b_a3b",
            "--target",
            "h200_sxm",
            "--workload",
            "long-128k",
            "--explain",
        )
        assert result.exit_code == 0
        assert "does not fit h200_sxm at long-128k" in result.stdout
        assert re.search(r"E +moe +experts +[\d.]+ +[\d.]+ +fitted", result.stdout)
        assert re.search(r"based on: 9\d% public timings of this GPU \(fitted\)", result.stdout)

    def test_the_explanation_as_json_adds_up(self, run: Run) -> None:
        answer = run("profile", "deepseek_v3", "--target", "8xh200_sxm", "--explain", "--json")
        found = json.loads(answer.stdout)
        decode = next(m for m in found["measurements"] if m["name"] == "decode_ms")
        part = next(p for p in found["explain"] if p["pass"].startswith("decoding"))
        assert 1e3 * part["seconds"] == pytest.approx(decode["value"])
        assert sum(s["seconds"] for s in part["terms"]) == pytest.approx(part["seconds"])
        assert (part["split"], decode["device"]) == ("tp8", "8xh200_sxm tp8")
        assert found["fits"][0]["verdict"] == "fits"

    @pytest.mark.parametrize(
        ("arguments", "start"),
        [
            (("--target", "h200"), "unknown target 'h200'; did you mean 'h200_sxm'?"),
            (("--target", "9999xh200_sxm"), "a node has 1 to 64 devices, got '9999xh200_sxm'"),
            (("--workload", "chat4k"), "unknown workload 'chat4k'; did you mean 'chat-4k'?"),
            (
                ("--context", "1000000000"),
                "--context: input should be less than or equal to 134217728",
            ),
            (("--whole",), "--whole needs --measure"),
            (
                ("--measure", "--device", "cpu", "--target", "h200_sxm"),
                "--measure times the local device, cpu, but --target is h200_sxm",
            ),
            (("--store", "sqlite:///none.db"), "none.db: no such store"),
        ],
    )
    def test_bad_input_is_one_line(self, run: Run, arguments: tuple[str, ...], start: str) -> None:
        assert message(run("profile", "llama3_8b", *arguments)).startswith(start)

    @pytest.mark.parametrize("option", ["--context", "--batch"])
    def test_a_context_or_batch_of_zero_is_invalid(self, run: Run, option: str) -> None:
        result = run("profile", "llama3_8b", option, "0")
        assert result.exit_code == 2

    def test_fp8_on_a_gpu_without_it_is_an_error(self, run: Run) -> None:
        expected = "deepseek_v3: a100_sxm_80gb has no FP8 units, the precision plan needs them"
        assert message(run("profile", "deepseek_v3", "--target", "a100_sxm_80gb")) == expected

    @pytest.mark.slow
    def test_measured_blocks_are_kept_and_compose(self, run: Run) -> None:
        point = ("--context", "64", "--batch", "2")
        result = run("profile", "small.yaml", "--measure", "--device", "cpu", "--explain", *point)
        assert result.exit_code == 0, result.output
        assert "based on: 100% blocks timed on this device" in result.stdout
        found = values(run("profile", "small.yaml", "--target", "cpu", "--json", *point))
        assert found["decode_ms"]["provenance"] == "composed"
        assert found["prefill_ms"]["provenance"] == "composed"
        again = run("profile", "small.yaml", "--measure", "--whole", "--device", "cpu", *point)
        assert "timing block" not in again.output
        assert again.output.count("timing whole") == 2
        assert re.search(
            r"64x2 decode: sum of the blocks .* composition error [+-]\d", again.output
        )
        found = values(run("profile", "small.yaml", "--target", "cpu", "--json", *point))
        assert found["decode_ms"]["provenance"] == "measured"


class TestCalibrate:
    def test_a_calibration_is_used_from_then_on(self, run: Run, tmp_path: Path) -> None:
        before = values(run("profile", "llama3_8b", "--json"))
        (tmp_path / "h200.json").write_text(json.dumps(h200(1.5).plain()))
        assert "h200_sxm calibrated on" in run("calibrate", "--from", "h200.json").stdout
        after = values(run("profile", "llama3_8b", "--json"))
        for name in ("prefill_ms", "decode_ms"):
            ratio = after[name]["value"] / before[name]["value"]
            assert ratio == pytest.approx(1.5, rel=0.07), name
        explained = run("profile", "llama3_8b", "--explain").stdout
        assert "100% operators timed on this device (calibrated)" in explained
        compared = json.loads(run("compare", "llama3_8b", "gemma2_9b", "--json").stdout)
        column = compared["architectures"][0]["measurements"]
        assert {m["name"]: m["value"] for m in column}["decode_ms"] == after["decode_ms"]["value"]

    @pytest.mark.parametrize(
        ("change", "start"),
        [
            ({"schema": 7}, "x.json: schema must be 1, got 7"),
            ({"device": {"name": "rtx_9090"}}, "x.json: device.name: unknown device 'rtx_9090'"),
        ],
    )
    def test_an_unknown_schema_or_gpu_is_an_error(
        self, run: Run, tmp_path: Path, change: dict[str, Any], start: str
    ) -> None:
        (tmp_path / "x.json").write_text(json.dumps({**h200(1.0).plain(), **change}))
        assert message(run("calibrate", "--from", "x.json")).startswith(start)
        assert not (tmp_path / "archfront.db").exists()

    def test_a_corrupted_calibration_is_reported_and_replaceable(
        self, run: Run, tmp_path: Path
    ) -> None:
        (tmp_path / "h200.json").write_text(json.dumps(h200(1.0).plain()))
        run("calibrate", "--from", "h200.json")
        with sqlite3.connect(tmp_path / "archfront.db") as connection:
            connection.execute("update archfront_calibrations set document = '{\"schema\": 1}'")
        connection.close()
        start = "calibration of h200_sxm in the store: no calibration"
        assert message(run("profile", "llama3_8b")).startswith(start)
        assert run("studies").exit_code == 0
        assert run("calibrate", "--from", "h200.json").exit_code == 0
        assert run("profile", "llama3_8b").exit_code == 0

    def test_a_missing_device_is_an_error(self, run: Run) -> None:
        expected = "torch sees 0 CUDA devices here, got 'cuda:0'"
        assert message(run("calibrate", "--device", "cuda:0")) == expected
        assert message(run("calibrate", "--points", "31")) == "--points is 30 or 100, got 31"
