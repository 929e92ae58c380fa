"""Searches on a real Ray: faults, rungs, resume, reproducibility; and the driver without Ray."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from archfront.orchestrator import workers
from archfront.orchestrator.driver import Driver
from archfront.orchestrator.samplers.registry import SAMPLERS
from archfront.orchestrator.search import Run, create_study, run_study
from archfront.orchestrator.searcher import StudySearcher
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
        """Show nothing."""

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
    """A trainable whose values follow from the key; `fault_of(number)` makes it fail."""

    def trainable(config: dict[str, Any]) -> None:
        task = json.loads(config[workers.TASK])
        fault, key = fault_of(task["number"]), task["key"]

        def profile(*_: Any) -> Iterator[Report]:
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
    sampler: str | None = None,
    scheduler: TrialScheduler | None = None,
    **run: Any,
) -> Study:
    study = create_study(
        store, space, name=name, target="h200_sxm", trials=trials, seed=3, sampler=sampler
    )
    return run_study(
        store, study, space, Run(**run), Silent(), trainable=trainable, scheduler=scheduler
    )


def rising(config: dict[str, Any]) -> None:
    """A trainable that reports at two rungs: recall doubles from the first to the last."""
    task = json.loads(config[workers.TASK])

    def profile(_: Any, __: Any, ___: int, metrics: Collection[str]) -> Iterator[Report]:
        for rung, recall in enumerate((0.25, 0.5)):
            values = {"bits_per_byte": 3.0 - rung, "recall": recall}
            yield Report(
                key=task["key"],
                measurements=tuple(
                    Measurement.measured(name, value, device="cpu", rung=rung)
                    for name, value in values.items()
                ),
                facts={"metrics": " ".join(sorted(metrics))},
                rung=rung,
            )

    workers.attempt(config, profile)


class StopAtFirstRung(FIFOScheduler):
    """A scheduler that stops every trial at its first report."""

    def on_trial_result(self, *_: Any) -> str:
        return TrialScheduler.STOP


@pytest.fixture
def two_rungs(tiny_space: str) -> SearchSpace:
    text = tiny_space.replace("profile:\n", "profile:\n  rungs: [{fraction: 0.5}, {fraction: 1}]\n")
    return check_space(parse_document(text, source="tiny.yaml"))


@pytest.mark.usefixtures("local_ray")
class TestRungs:
    def test_every_rung_is_recorded_and_the_last_one_counts(
        self, store: Store, two_rungs: SearchSpace
    ) -> None:
        study = searched(store, two_rungs, 3, rising, workers=2)
        complete = [t for t in store.trials("s") if t.state == "complete"]
        assert study.counts["complete"] == len(complete) == 3
        assert [t.values[:2] for t in complete if t.values] == [[2.0, 0.5]] * 3
        recalls = [
            (m.number, m.rung, m.value) for m in store.rung_measurements("s") if m.name == "recall"
        ]
        expected = [(t.number, rung, value) for t in complete for rung, value in RECALLS]
        assert recalls == expected
        report = store.report("s", complete[0].number)
        assert report is not None
        assert (report.rung, report.value("recall")) == (1, 0.5)

    def test_a_task_names_the_metrics_of_objectives_and_constraints(
        self, store: Store, two_rungs: SearchSpace
    ) -> None:
        searched(store, two_rungs, 1, rising)
        complete = next(t for t in store.trials("s") if t.state == "complete")
        report = store.report("s", complete.number)
        assert report is not None
        assert report.facts["metrics"] == "bits_per_byte decode_ms memory_gib recall"

    def test_a_trial_that_a_scheduler_stops_has_no_result(
        self, store: Store, two_rungs: SearchSpace
    ) -> None:
        searched(store, two_rungs, 2, rising, scheduler=StopAtFirstRung())
        ended = [(t.state, t.kind) for t in store.trials("s") if t.state != "rejected"]
        assert ended == [("failed", "missing")] * 2


RECALLS = ((0, 0.25), (1, 0.5))


class TestEvents:
    """The driver and the searcher, called as Tune would call them."""

    @pytest.fixture
    def searcher(self, store: Store, two_rungs: SearchSpace) -> StudySearcher:
        study = create_study(store, two_rungs, name="s", target="h200_sxm", trials=40, seed=3)
        store.claim("s", "me")
        return StudySearcher(Driver(store, study, two_rungs, Silent()))

    def result(self, task: dict[str, Any], rung: int) -> dict[str, Any]:
        """The result that Tune passes to the searcher for a report."""
        report = Report(
            key=json.loads(task[workers.TASK])["key"],
            measurements=(
                Measurement.measured("bits_per_byte", 3.0, device="cpu", rung=rung),
                Measurement.measured("recall", 0.25 * (rung + 1), device="cpu", rung=rung),
            ),
            rung=rung,
        )
        return {workers.ANSWER if rung else workers.REPORT: json.dumps(report.plain())}

    @pytest.mark.parametrize("seed", range(5))
    def test_events_that_come_late_twice_or_for_unknown_trials_change_nothing(
        self, searcher: StudySearcher, store: Store, seed: int
    ) -> None:
        source = random.Random(seed)
        tasks = {f"t{index}": searcher.suggest(f"t{index}") for index in range(6)}
        first_end: dict[str, str] = {}
        events = [(trial, what) for trial in tasks for what in EVENTS for _ in range(2)]
        source.shuffle(events)
        for trial, what in events:
            if what in ("complete", "error", "silent"):
                first_end.setdefault(trial, what)
            self.send(searcher, trial, tasks[trial], what)
            self.send(searcher, "unknown", tasks[trial], what)
        states = {"complete": "complete", "error": "failed", "silent": "failed"}
        ended = [t.state for t in store.trials("s") if t.state != "rejected"]
        assert ended == [states[first_end[trial]] for trial in tasks]
        kinds = [t.kind for t in store.trials("s") if t.state != "rejected"]
        of_end = {"complete": None, "error": "lost", "silent": "missing"}
        assert kinds == [of_end[first_end[trial]] for trial in tasks]
        assert searcher.driver.counts["failed"] == ended.count("failed")
        assert searcher.suggest("another") is not None

    def send(self, searcher: StudySearcher, trial: str, task: dict[str, Any], what: str) -> None:
        match what:
            case "rung":
                searcher.on_trial_result(trial, self.result(task, 0))
            case "last":
                searcher.on_trial_result(trial, self.result(task, 1))
            case "complete":
                searcher.on_trial_complete(trial, self.result(task, 1))
            case "error":
                searcher.on_trial_complete(trial, error=True)
            case _:
                searcher.on_trial_complete(trial)

    def test_a_driver_ignores_events_of_trials_that_do_not_run(
        self, searcher: StudySearcher, store: Store
    ) -> None:
        task = searcher.suggest("t")
        number, driver = searcher.numbers["t"], searcher.driver
        answer = json.loads(self.result(task, 1)[workers.ANSWER])
        for _ in range(2):
            driver.finish(number, answer)
            driver.report(number, answer)
            driver.finish(number, None, lost=True)
            driver.finish(999, answer)
            driver.report(999, answer)
        assert store.study("s").counts["complete"] == 1

    def test_values_of_a_rung_that_are_not_finite_are_left_out(
        self, searcher: StudySearcher, store: Store
    ) -> None:
        task = searcher.suggest("t")
        answer = json.loads(self.result(task, 0)[workers.REPORT])
        answer["measurements"][0]["value"] = math.nan
        searcher.driver.report(searcher.numbers["t"], answer)
        assert [(m.name, m.rung) for m in store.rung_measurements("s")] == [("recall", 0)]


EVENTS = ("rung", "last", "complete", "error", "silent")


class TestSamplers:
    def test_the_sampler_comes_from_the_space_file_unless_it_is_given(
        self, store: Store, small_space: str
    ) -> None:
        text = small_space + "search: {sampler: nsga2}\n"
        space = check_space(parse_document(text, source="small.yaml"))
        given = {"target": "h200_sxm", "trials": 1, "seed": 0}
        assert create_study(store, space, name="a", **given).sampler == "nsga2"
        assert create_study(store, space, name="b", sampler="random", **given).sampler == "random"
        driver = Driver(store, store.study("b"), space, Silent())
        assert isinstance(driver.sampler, SAMPLERS["random"])

    def test_an_unknown_sampler_raises(self, store: Store, space: SearchSpace) -> None:
        with pytest.raises(InputError, match=r"unknown sampler 'tpee'; did you mean 'tpe'\?"):
            create_study(store, space, name="a", target="x", trials=1, seed=0, sampler="tpee")

    @pytest.mark.usefixtures("local_ray")
    @pytest.mark.parametrize("sampler", ["random", "nsga2"])
    def test_a_study_resumes_with_its_sampler(
        self, store: Store, space: SearchSpace, sampler: str
    ) -> None:
        searched(store, space, 8, answering(), name="whole", sampler=sampler)
        searched(store, space, 4, answering(), name="parts", sampler=sampler)
        parts = store.study("parts")
        run_study(store, parts, space, Run(), Silent(), trials=8, trainable=answering())
        whole, parts = (
            [t.key for t in store.trials(n) if t.state == "complete"] for n in ("whole", "parts")
        )
        assert whole == parts


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

        study = searched(store, space, 1000, slow, workers=2, seconds=40)
        assert study.status == "interrupted"
        assert 0 < study.counts["complete"] < 2 * 45
        assert "failed" not in study.counts  # what was cut off waits for a resume

    def test_an_exhausted_space_ends_the_search(self, store: Store, small_space: str) -> None:
        space = check_space(parse_document(small_space, source="small.yaml"))
        study = searched(store, space, 50, answering(), workers=2)
        assert study.status == "finished"
        assert study.counts["complete"] == 8


def test_a_second_driver_is_rejected(store: Store, space: SearchSpace) -> None:
    create_study(store, space, name="s", target="h200_sxm", trials=4, seed=0)
    store.claim("s", "elsewhere:1")
    with pytest.raises(InputError, match="held by another driver, elsewhere:1"):
        run_study(store, store.study("s"), space, Run(), Silent(), trainable=answering())


@pytest.mark.slow
def test_kill_9_loses_no_finished_trial(tmp_path: Path, small_space: str) -> None:
    """The command line, killed half-way, then resumed: the finished trials are kept."""
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
