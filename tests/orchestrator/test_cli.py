"""The command line: every command runs in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import pytest
import typer
import yaml
from sqlalchemy import make_url
from typer.testing import CliRunner

from archfront.orchestrator.cli import options
from archfront.orchestrator.cli.app import app
from archfront.orchestrator.samplers.registry import SAMPLERS
from archfront.orchestrator.search import create_study
from archfront.orchestrator.store import open_store
from archfront.orchestrator.store_url import DEFAULT_STORE, store_option
from archfront.profilers.report import Measurement, Report
from archfront.search_space.check import check_space
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.space import sample

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
    arguments = ("--trials", "3", "--seed", "1", "--sampler", "nsga2")
    ended = archfront("search", "small.yaml", *arguments, cwd=folder)
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
        table = archfront("front", cwd=searched).stdout
        assert "measured" in table
        assert front["knee"] in table

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

    def test_export_overwrites_no_file_without_force(self, searched: Path) -> None:
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

    def test_a_finished_study_resumes_with_more_trials(self, searched: Path) -> None:
        (study,) = plain("studies", cwd=searched)["studies"]
        assert (study["name"], study["sampler"]) == ("small-1", "nsga2")
        assert (
            plain("resume", "small-1", "--trials", "4", cwd=searched)["study"]["trials"]["complete"]
            == 4
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["front", "smal-1"], "no study 'smal-1'; did you mean 'small-1'"),
            (["show", "ffffffffffff"], "no architecture has a key that begins with 'ffffffffffff'"),
            (["resume", "nothing"], "no study 'nothing'"),
            (["export", "zz", "-o", "x.yaml"], "no architecture has a key that begins with 'zz'"),
        ],
    )
    def test_an_unknown_name_is_an_error(
        self, searched: Path, arguments: list[str], message: str
    ) -> None:
        ended = archfront(*arguments, cwd=searched)
        assert ended.returncode == 2
        assert message in ended.stderr
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
    ("change", "arguments", "message"),
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
def test_bad_input_exits_with_2_and_one_line_and_writes_nothing(
    tmp_path: Path,
    small_space: str,
    change: tuple[str, str] | None,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "small.yaml").write_text(small_space.replace(*change) if change else small_space)
    (tmp_path / "empty.txt").write_text("")
    before = sorted(tmp_path.iterdir())
    ended = archfront("search", "small.yaml", *arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    left = [path for path in sorted(tmp_path.iterdir()) if path not in before]
    if "Bad Name" not in arguments:
        assert left == []


def test_reading_a_missing_store_does_not_create_it(tmp_path: Path) -> None:
    for command in (["front"], ["studies"], ["show", "abc"], ["dashboard"]):
        ended = archfront(*command, cwd=tmp_path)
        assert ended.returncode == 2
        assert "archfront.db" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_space_check_shows_choices_and_rejecting_constraints(
    tmp_path: Path, tiny_space: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_space)
    found = plain("space", "check", "tiny.yaml", cwd=tmp_path)
    assert found["legal"] > 150
    assert "moe.top_k * 4 <= moe.n_experts" in found["rejected"]
    assert "blocks.L.kv_lora_rank" in found["choices"]


HEAVY = ["torch", "ray", "optuna", "sqlalchemy", "pandas", "streamlit", "numpy"]


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--version"], [*HEAVY, "rich"]),
        (["--help"], HEAVY),
        (["search", "--help"], HEAVY),
        (["atlas", "list"], ["torch", "ray", "optuna", "pandas", "streamlit"]),
    ],
)
def test_a_command_imports_only_what_it_needs(arguments: list[str], heavy: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['archfront', *{arguments}]\n"
        "from archfront.orchestrator.cli.app import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


STORE = {"store", "as_json"}
RUN = {"seconds", "address", "workers", "gpus"}
POINT = {"context", "batch"}
CACHES = {*POINT, "kv", "state", "mtp", "as_json"}
COMMANDS = {
    "search": {"space", "target", "trials", "seed", "sampler", "name", *RUN, *STORE},
    "resume": {"study", "trials", *RUN, *STORE},
    "studies": STORE,
    "front": {"study", *STORE},
    "show": {"key", "study", *STORE},
    "compare": {"architectures", "target", "study", *POINT, *STORE},
    "export": {"key", "output", "study", "force", "store"},
    "profile": {
        *("architecture", "target", "workload", "explain", "measure", "whole", "device", "train"),
        *("study", *POINT, *STORE),
    },
    "calibrate": {"device", "points", "output", "given", "force", *STORE},
    "dashboard": {"store", "port", "host"},
    "space check": {"space", "draws", "as_json"},
    "space schema": {"architecture"},
    "atlas list": CACHES,
    "atlas show": {"model", *CACHES},
    "atlas import": {"config", "output", "force", "as_json"},
    "atlas export": {"architecture", "output", "model_type", "force", "store"},
}


def leaves(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of a group and of its subgroups, by its full name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_the_command_line_has_these_commands_and_parameters() -> None:
    found = dict(leaves(typer.main.get_command(app)))
    assert {
        name: {p.name for p in command.params if p.name != "help"}
        for name, command in found.items()
    } == COMMANDS


def test_every_command_and_parameter_has_a_help_text() -> None:
    for name, command in leaves(typer.main.get_command(app)):
        assert command.help, name
        assert all(p.help for p in command.params), name


def test_the_choices_of_sampler_are_those_of_the_registry() -> None:
    choices, _ = get_args(get_args(options.Sampler)[0])
    assert set(get_args(choices)) == set(SAMPLERS)


class TestStorePasswords:
    URL = "postgresql://reader:hunter2@127.0.0.1:1/runs"

    def test_an_argument_with_a_password_moves_to_the_environment(self, tmp_path: Path) -> None:
        """The restarted process fails to connect, which its message says without the password."""
        ended = archfront("studies", f"--store={self.URL}", cwd=tmp_path)
        assert ended.returncode == 2
        warning, error = ended.stderr.splitlines()
        assert "export ARCHFRONT_STORE" in warning
        assert error.startswith("postgresql://reader@127.0.0.1:1/runs: connection failed")
        assert "hunter2" not in ended.stdout + ended.stderr

    @pytest.mark.slow
    def test_a_search_shows_its_password_nowhere(
        self, tmp_path: Path, small_space: str, postgres_url: str
    ) -> None:
        """Neither in its output nor in its command line, which `ps` and Ray's list of jobs show."""
        url = make_url(postgres_url).set(password="hunter2").render_as_string(hide_password=False)
        (tmp_path / "small.yaml").write_text(small_space)
        running = subprocess.Popen(
            [str(ARCHFRONT), "search", "small.yaml", "--trials", "1", "--store", url],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stderr is not None
        warning, started = running.stderr.readline(), running.stderr.readline()
        command_line = Path(f"/proc/{running.pid}/cmdline").read_text().split("\0")
        out, err = running.communicate(timeout=200)
        assert running.returncode == 0, err
        assert "starting Ray" in started
        assert command_line[2:-1] == ["search", "small.yaml", "--trials", "1"]
        assert '--store "$ARCHFRONT_STORE"' in out
        assert "hunter2" not in warning + started + out + err

    def test_the_dashboard_gets_a_free_port_and_the_store_in_its_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = f"sqlite:///{tmp_path}/runs.db"
        open_store(url).close()
        started: dict[str, Any] = {}

        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            started.update(command=command, **options)
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(subprocess, "run", run)
        with socket.create_server(("127.0.0.1", 0)) as server:
            command = ["dashboard", "--store", url, "--port", str(server.getsockname()[1])]
            taken = CliRunner().invoke(app, command)
        assert isinstance(taken.exception, InputError)
        assert "Address already in use" in str(taken.exception)
        assert not started
        assert CliRunner().invoke(app, command).exit_code == 0
        assert started["env"]["ARCHFRONT_STORE"] == url
        assert not any(url in word for word in started["command"])

    @pytest.mark.parametrize(
        ("url", "exported", "option"),
        [
            (DEFAULT_STORE, None, ""),
            (DEFAULT_STORE, "sqlite:///other.db", f" --store {DEFAULT_STORE}"),
            ("sqlite:///my runs.db", None, " --store 'sqlite:///my runs.db'"),
            ("postgresql://reader@host/runs", None, " --store postgresql://reader@host/runs"),
            ("sqlite:///other.db", "sqlite:///other.db", ' --store "$ARCHFRONT_STORE"'),
            (URL, URL, ' --store "$ARCHFRONT_STORE"'),
            (URL, None, ' --store "$ARCHFRONT_STORE"'),
            ("postgresql:///runs?password=hunter2", None, ' --store "$ARCHFRONT_STORE"'),
        ],
    )
    def test_the_store_option_of_a_next_command_shows_no_password(
        self, monkeypatch: pytest.MonkeyPatch, url: str, exported: str | None, option: str
    ) -> None:
        monkeypatch.delenv("ARCHFRONT_STORE", raising=False)
        if exported is not None:
            monkeypatch.setenv("ARCHFRONT_STORE", exported)
        assert store_option(url) == option


class TestOneArchitectureInTwoStudies:
    TARGETS = MappingProxyType({"first": "a100_sxm_80gb", "second": "h200_sxm"})

    @pytest.fixture
    def key(self, tmp_path: Path, small_space: str) -> str:
        """The key of an architecture with a completed trial in each study; `second` is newer."""
        space = check_space(parse_document(small_space, source="small.yaml"))
        chosen = sample(space, 10, seed=0).legal[0]
        with open_store(f"sqlite:///{tmp_path}/archfront.db") as store:
            for number, (name, target) in enumerate(self.TARGETS.items()):
                create_study(store, space, name=name, target=target, trials=1, seed=0)
                store.begin_trial(name, 0, chosen, {})
                measurements = (Measurement(name="recall", value=number, provenance="measured"),)
                report = Report(key=chosen.key, measurements=measurements)
                store.finish_trial(name, 0, report, [1.0, number, 1.0], True, {})
        return chosen.key

    @pytest.mark.parametrize("study", TARGETS)
    def test_export_writes_the_target_of_the_named_study(
        self, tmp_path: Path, key: str, study: str
    ) -> None:
        ended = archfront("export", key, "--study", study, "-o", "chosen.yaml", cwd=tmp_path)
        assert ended.stderr == ""
        assert f"from trial 0 of {study}, target {self.TARGETS[study]}" in ended.stdout
        written = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
        assert written["profile"]["target"] == self.TARGETS[study]
        assert written["origin"]["study"] == study

    @pytest.mark.parametrize("study", TARGETS)
    def test_show_and_compare_take_the_trial_of_the_named_study(
        self, tmp_path: Path, key: str, study: str
    ) -> None:
        shown = plain("show", key, "--study", study, cwd=tmp_path)
        assert shown["study"] == study
        (compared,) = plain("compare", key, "--study", study, cwd=tmp_path)["architectures"]
        assert compared["measurements"] == shown["measurements"]
        assert shown["measurements"][0]["value"] == list(self.TARGETS).index(study)

    def test_without_a_study_the_newest_trial_is_chosen_and_reported(
        self, tmp_path: Path, key: str
    ) -> None:
        ended = archfront("export", key, "-o", "chosen.yaml", cwd=tmp_path)
        expected = f"{key} is in the studies first, second: took its newest trial, 0 of second"
        assert expected in ended.stderr
        written = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
        assert written["profile"]["target"] == "h200_sxm"

    def test_an_unknown_study_is_an_error(self, tmp_path: Path, key: str) -> None:
        ended = archfront("show", key, "--study", "frist", cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "no study 'frist'; did you mean 'first'" in ended.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_finished_trials_and_prints_the_resume_command(
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
