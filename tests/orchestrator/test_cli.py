"""The command line as users and scripts meet it: every command in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from archfront.orchestrator.store import open_store
from archfront.search_space.document import InputError

ARCHFRONT = Path(sys.executable).with_name("archfront")


def archfront(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(ARCHFRONT), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


def plain(*arguments: object, cwd: Path) -> dict[str, Any]:
    """The one JSON document of a command that must succeed."""
    ended = archfront(*arguments, "--json", cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, small_space: str) -> Path:
    """A folder with a finished search of the small space in its default store."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "small.yaml").write_text(small_space)
    ended = archfront("search", "small.yaml", "--trials", "3", "--seed", "1", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "next:  archfront show" in ended.stdout
    return folder


class TestAfterASearch:
    def test_the_front_shows_every_number_with_its_provenance(self, searched: Path) -> None:
        front = plain("front", cwd=searched)
        assert front["study"]["trials"]["complete"] == 3
        assert front["front"]
        provenances = {m["name"]: m["provenance"] for m in front["front"][0]["measurements"]}
        assert provenances["bits_per_byte"] == "measured"
        assert provenances["decode_ms"] == "estimated"
        assert provenances["total_params"] == "counted"
        told = archfront("front", cwd=searched).stdout
        assert "measured" in told
        assert front["knee"] in told

    def test_an_exported_file_profiles_to_the_same_counted_numbers(self, searched: Path) -> None:
        key = plain("front", cwd=searched)["knee"]
        assert (
            archfront("export", key, "-o", "chosen.yaml", "--force", cwd=searched).returncode == 0
        )
        stored = plain("show", key[:6], cwd=searched)
        again = plain("profile", "chosen.yaml", cwd=searched)
        assert again["key"] == stored["key"] == key
        exact = ("counted", "estimated")
        assert numbers(again, exact) == numbers(stored, exact)
        timings = ("bits_per_byte", "recall")
        assert {n: v for n, v in numbers(again).items() if n[0] in timings} == {
            n: v for n, v in numbers(stored).items() if n[0] in timings
        }

    def test_export_never_replaces_a_file_unasked(self, searched: Path) -> None:
        key = plain("front", cwd=searched)["knee"]
        (searched / "mine.yaml").write_text("mine")
        ended = archfront("export", key, "-o", "mine.yaml", cwd=searched)
        assert (ended.returncode, (searched / "mine.yaml").read_text()) == (2, "mine")
        assert "mine.yaml: exists already" in ended.stderr

    def test_compare_takes_keys_and_files(self, searched: Path) -> None:
        front = plain("front", cwd=searched)
        keys = [entry["key"] for entry in front["front"]][:1]
        bare = yaml.safe_dump(plain("show", keys[0], cwd=searched)["architecture"])
        (searched / "bare.yaml").write_text(bare)
        compared = plain("compare", *keys, "bare.yaml", cwd=searched)
        assert [c["key"] for c in compared["architectures"]] == [keys[0], keys[0]]
        assert archfront("compare", *keys, "bare.yaml", cwd=searched).returncode == 0

    def test_studies_and_resume_with_more_trials(self, searched: Path) -> None:
        assert [s["name"] for s in plain("studies", cwd=searched)["studies"]] == ["small-1"]
        assert (
            plain("resume", "small-1", "--trials", "4", cwd=searched)["study"]["trials"]["complete"]
            == 4
        )

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["front", "smal-1"], "no study 'smal-1'; did you mean 'small-1'"),
            (["show", "ffffffffffff"], "no architecture has a key that begins with 'ffffffffffff'"),
            (["resume", "nothing"], "no study 'nothing'"),
            (["export", "zz", "-o", "x.yaml"], "no architecture has a key that begins with 'zz'"),
        ],
    )
    def test_an_unknown_name_is_told(self, searched: Path, arguments: list[str], told: str) -> None:
        ended = archfront(*arguments, cwd=searched)
        assert ended.returncode == 2
        assert told in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def numbers(
    report: dict[str, Any], provenances: tuple[str, ...] = ("measured",)
) -> dict[tuple[str, Any], float]:
    return {
        (m["name"], m["workload"]): m["value"]
        for m in report["measurements"]
        if m["provenance"] in provenances
    }


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (
            ("d_model: 256", "d_modle: 256"),
            [],
            r"small.yaml:3: architecture.d_modle: unknown field",
        ),
        (("value: 3.0e6", "value: 10"), [], "small.yaml:10: budget: 64 of 64"),
        (None, ["--target", "h201_sxm"], "unknown target 'h201_sxm'; did you mean 'h200_sxm'?"),
        (None, ["--store", "mysql://x/y"], "mysql"),
        (None, ["--store", "sqlite:///no/such/folder/x.db"], "no/such/folder"),
        (None, ["--name", "Bad Name"], "a study's name has"),
        (("context: 32,", "context: 32, corpus: empty.txt,"), [], "empty.txt"),
        (("context: 32,", "context: 32, corpus: nowhere,"), [], "nowhere"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    tmp_path: Path,
    small_space: str,
    change: tuple[str, str] | None,
    arguments: list[str],
    told: str,
) -> None:
    (tmp_path / "small.yaml").write_text(small_space.replace(*change) if change else small_space)
    (tmp_path / "empty.txt").write_text("")
    before = sorted(tmp_path.iterdir())
    ended = archfront("search", "small.yaml", *arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    left = [path for path in sorted(tmp_path.iterdir()) if path not in before]
    if "Bad Name" not in arguments:
        assert left == []


def test_reading_a_store_that_is_not_there_creates_none(tmp_path: Path) -> None:
    for command in (["front"], ["studies"], ["show", "abc"], ["dashboard"]):
        ended = archfront(*command, cwd=tmp_path)
        assert ended.returncode == 2
        assert "archfront.db" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_space_check_says_what_is_searched_and_what_refuses(
    tmp_path: Path, tiny_space: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_space)
    told = plain("space", "check", "tiny.yaml", cwd=tmp_path)
    assert told["legal"] > 150
    assert "moe.top_k * 4 <= moe.n_experts" in told["rejected"]
    assert "blocks.L.kv_lora_rank" in told["choices"]


def test_version_is_fast_and_loads_nothing_heavy() -> None:
    heavy = [
        "torch",
        "ray",
        "optuna",
        "sqlalchemy",
        "pandas",
        "streamlit",
        "numpy",
        "rich",
    ]
    code = (
        "import sys; sys.argv = ['archfront', '--version']\n"
        "from archfront.orchestrator.cli.app import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["archfront 0.1.0", "[]"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_names_the_way_on(
    tmp_path: Path, small_space: str
) -> None:
    (tmp_path / "small.yaml").write_text(small_space.replace("steps: 4", "steps: 60"))
    command = [str(ARCHFRONT), "search", "small.yaml", "--trials", "8"]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    url = f"sqlite:///{tmp_path}/archfront.db"
    for _ in range(400):
        time.sleep(0.2)
        try:
            with open_store(url, readonly=True) as store:
                if store.studies() and store.studies()[0].counts.get("complete", 0) >= 1:
                    break
        except InputError:
            continue
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "archfront resume small-1" in err
    assert "front" in out
    with open_store(url, readonly=True) as store:
        study = store.study("small-1")
    assert study.status == "interrupted"
    assert 1 <= study.counts["complete"] < 8
    assert "failed" not in study.counts
