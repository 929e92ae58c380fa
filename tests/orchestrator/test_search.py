"""A real search on a real Ray: every fault is recorded, nothing finished is lost, seeds repeat."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from archfront.orchestrator import workers
from archfront.orchestrator.search import Run, create_study, run_study
from archfront.orchestrator.store import Store, Study, open_store
from archfront.profilers.report import Measurement, Report
from archfront.search_space.check import check_space
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.space import SearchSpace
from archfront.search_space.warm_start import starts

pytestmark = pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning")
Trainable = Callable[[dict[str, Any]], None]


class Silent:
    """A view that shows nothing."""

    def show(self, state: object) -> None:
        """Not shown."""

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def space(tiny_space: str) -> SearchSpace:
    return check_space(parse_document(tiny_space, source="tiny.yaml"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


def answering(fault_of: Callable[[int], str | None] = lambda number: None) -> Trainable:
    """A trainable whose numbers follow from the key; `fault_of(number)` makes it misbehave."""

    def trainable(config: dict[str, Any]) -> None:
        task = json.loads(config[workers.TASK])
        fault, key = fault_of(task["number"]), task["key"]

        def profile(architecture: Any, plan: Any, seed: int) -> Iterator[Report]:
            if fault == "raise":
                raise ArithmeticError("the sums do not add up")
            if fault == "exit":
                os._exit(1)
            if fault == "hang":
                time.sleep(600)
            names = ["bits_per_byte", "recall", "decode_ms", "memory_gib"]
            values = [int(key[i : i + 3], 16) / 4096 for i in (0, 3, 6, 9)]
            if fault == "nan":
                values[1] = float("nan")
            if fault == "missing":
                names, values = names[:2], values[:2]
            if fault == "infeasible":
                values[3] = 1e6
            measurements = tuple(
                Measurement(name=n, value=v, provenance="counted")
                for n, v in zip(names, values, strict=True)
            )
            yield Report(key=key, measurements=measurements)

        if fault == "silent":
            return
        if fault == "outside":
            raise RuntimeError("before the attempt")
        workers.attempt(config, profile)

    return trainable


def searched(
    store: Store,
    space: SearchSpace,
    trials: int,
    trainable: Trainable,
    *,
    name: str = "s",
    **run: Any,
) -> Study:
    study = create_study(store, space, name=name, target="h200_sxm", trials=trials, seed=3)
    return run_study(store, study, space, Run(**run), Silent(), trainable=trainable)


@pytest.mark.usefixtures("local_ray")
class TestFaults:
    def test_each_fault_is_recorded_and_the_search_goes_on(
        self, store: Store, space: SearchSpace
    ) -> None:
        faults = ["nan", "missing", "silent", "raise", "exit", "outside", "infeasible", None]
        of_number: dict[int, str | None] = {}

        def fault_of(number: int) -> str | None:
            return faults[number] if number < len(faults) else None

        study = searched(store, space, 12, answering(fault_of), workers=2)
        trials = {trial.number: trial for trial in store.trials("s")}
        of_number = {n: trials[n].kind for n in range(len(faults)) if trials[n].state != "rejected"}
        kinds = ["nan", "missing", "missing", "error", "crash", "lost", None, None]
        assert of_number == {n: kinds[n] for n in of_number}
        assert len(of_number) >= 6
        assert study.status == "finished"
        assert study.counts["complete"] + study.counts["failed"] == 12
        assert "running" not in study.counts
        raised = next(t for t in trials.values() if t.kind == "error")
        assert raised.reason is not None
        assert raised.reason.startswith("ArithmeticError: the sums do not add up (test_search.py:")

    def test_a_hung_trial_is_killed_and_recorded(self, store: Store, small_space: str) -> None:
        text = small_space + "  trial_seconds: 1\n"
        space = check_space(parse_document(text, source="small.yaml"))
        hung = answering(lambda number: "hang" if number == 0 else None)
        study = searched(store, space, 3, hung, workers=2)
        assert {t.number: t.kind for t in store.trials("s") if t.state == "failed"} == {0: "hang"}
        assert study.counts["complete"] == 2

    def test_an_infeasible_trial_is_complete_but_not_on_the_front(
        self, store: Store, space: SearchSpace
    ) -> None:
        searched(store, space, 4, answering(lambda number: "infeasible"), workers=2)
        assert [t.feasible for t in store.trials("s") if t.state == "complete"] == [False] * 4
        assert store.front("s") == []

    def test_the_same_seed_gives_the_same_architectures_and_front(
        self, store: Store, space: SearchSpace
    ) -> None:
        for name in ("one", "two"):
            searched(store, space, 8, answering(), name=name, workers=1)
        one, two = (
            [(t.number, t.state, t.key, t.on_front) for t in store.trials(name)]
            for name in ("one", "two")
        )
        assert one == two
        assert len({key for _, state, key, _ in one if state == "complete"}) == 8

    def test_the_first_candidates_are_those_of_the_warm_start(
        self, store: Store, small_space: str
    ) -> None:
        text = small_space + "warm_start: [llama3_8b, qwen3_next_80b_a3b]\n"
        space = check_space(parse_document(text, source="small.yaml"))
        near = [start.architecture for start in starts(space)]
        searched(store, space, 3, answering(), workers=1)
        keys = [t.key for t in store.trials("s") if t.state == "complete"]
        assert keys[: len(near)] == [start.key for start in near if start is not None]

    def test_a_resumed_study_goes_on_as_the_uninterrupted_one(
        self, store: Store, space: SearchSpace
    ) -> None:
        searched(store, space, 12, answering(), name="whole", workers=1)
        searched(store, space, 6, answering(), name="parts", workers=1)
        run_study(
            store, store.study("parts"), space, Run(), Silent(), trials=12, trainable=answering()
        )
        whole, parts = (
            [t.key for t in store.trials(n) if t.state == "complete"] for n in ("whole", "parts")
        )
        assert whole == parts

    def test_time_ends_a_search_and_keeps_what_is_done(
        self, store: Store, space: SearchSpace
    ) -> None:
        def slow(config: dict[str, Any]) -> None:
            time.sleep(1)
            answering()(config)

        study = searched(store, space, 1000, slow, workers=2, seconds=15)
        assert study.status == "interrupted"
        assert 0 < study.counts["complete"] < 40
        assert "failed" not in study.counts  # what was cut off waits for a resume

    def test_an_exhausted_space_ends_the_search(self, store: Store, small_space: str) -> None:
        space = check_space(parse_document(small_space, source="small.yaml"))
        study = searched(store, space, 50, answering(), workers=2)
        assert study.status == "finished"
        assert study.counts["complete"] == 8


def test_a_second_driver_is_refused(store: Store, space: SearchSpace) -> None:
    create_study(store, space, name="s", target="h200_sxm", trials=4, seed=0)
    store.claim("s", "elsewhere:1")
    with pytest.raises(InputError, match="held by another driver, elsewhere:1"):
        run_study(store, store.study("s"), space, Run(), Silent(), trainable=answering())


@pytest.mark.slow
def test_kill_9_loses_no_finished_trial(tmp_path: Path, small_space: str) -> None:
    """The real command, killed half-way, then resumed: eight trials in the end, the first ones kept."""
    archfront = Path(sys.executable).with_name("archfront")
    url = f"sqlite:///{tmp_path}/store.db"
    space = tmp_path / "small.yaml"
    space.write_text(small_space)
    command = [archfront, "search", space, "--trials", "8", "--seed", "1", "--store", url]
    first = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    kept: list[int] = []
    for _ in range(600):
        time.sleep(0.2)
        if (tmp_path / "store.db").exists():
            try:
                with open_store(url, readonly=True) as store:
                    kept = [
                        t.number
                        for s in store.studies()
                        for t in store.trials(s.name)
                        if t.state == "complete"
                    ]
            except InputError:
                continue  # not migrated yet
        if len(kept) >= 3:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert 3 <= len(kept) < 8
    resumed = subprocess.run(
        [archfront, "resume", "small-1", "--store", url, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    last = json.loads(resumed.stdout.splitlines()[-1])
    assert last["study"]["trials"]["complete"] == 8
    with open_store(url, readonly=True) as store:
        done = {t.number for t in store.trials("small-1") if t.state == "complete"}
    assert set(kept) <= done
