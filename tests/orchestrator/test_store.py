"""The store on a SQLite file and on a PostgreSQL server; then what only one of them has."""

import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from archfront.orchestrator import database, pareto
from archfront.orchestrator import store as store_module
from archfront.orchestrator.database import alembic_options
from archfront.orchestrator.store import Objective, open_store
from archfront.orchestrator.tables import SCHEMA, Base
from archfront.profilers.report import Failure, Measurement, Report
from archfront.profilers.timing.measure import Timed
from archfront.search_space.document import InputError
from archfront.search_space.operators import Point

NASTY = 'Robert\'); DROP TABLE archfront_studies;-- "%s" :name {x} \\ \n\t é 日本 🙂'

# A driver in another process. It prints the number of each trial once that is finished.
DRIVER = """
import sys
from archfront.orchestrator.store import open_store
from archfront.profilers.report import Report
from archfront.search_space.architecture import Architecture

block = {"kind": "ffn", "width": 128}
with open_store(sys.argv[1]) as store:
    store.claim("first", "doomed")
    print("ready", flush=True)
    for number in range(10_000):
        fields = {"d_model": 16 + number, "vocab_size": 512, "pattern": "-", "blocks": {"-": block}}
        architecture = Architecture.model_validate(fields)
        store.begin_trial("first", number, architecture, {"number": number})
        report = Report(key=architecture.key, measurements=())
        values = [number * 37 % 101 / 10, number * 53 % 97 / 97]
        store.finish_trial("first", number, report, values, True, {})
        print(number, flush=True)
"""

# Opens each store that it reads the URL of.
OPENER = """
import sys
from archfront.orchestrator.store import open_store

print("ready", flush=True)
for line in sys.stdin:
    with open_store(line.strip()) as store:
        print(store.studies(), flush=True)
"""


def measured(key, decode_ms=31.0, recall=0.9):
    return Report(
        key=key,
        measurements=(
            Measurement(name="recall", value=recall, provenance="measured", device="cpu"),
            Measurement(
                name="decode_ms",
                workload="chat-4k",
                value=decode_ms,
                low=decode_ms - 0.5,
                high=decode_ms + 0.5,
                provenance="composed",
                device="h200_sxm",
            ),
            Measurement(name="total_params", value=3e10, low=3e10, high=3e10, provenance="counted"),
        ),
        facts={"corpus": "sha256:ab12", "torch": "2.11.0"},
    )


def at_rung(key, rung, recall):
    """The report of a rung with one measurement."""
    found = Measurement(name="recall", value=recall, provenance="measured", device="cpu", rung=rung)
    return Report(key=key, measurements=(found,), rung=rung)


def finish(store, architecture, number, values, feasible=True, study="first"):
    store.begin_trial(study, number, architecture, {"number": number})
    report = measured(architecture.key, *values)
    store.finish_trial(study, number, report, values, feasible, {} if feasible else {"bound": 1.5})


def dominated(value, others, signs):
    """Whether one of `others` is better in an objective and worse in none."""
    cost = [sign * v for sign, v in zip(signs, value, strict=True)]
    for other in others:
        costs = [sign * v for sign, v in zip(signs, other, strict=True)]
        if costs != cost and all(a <= b for a, b in zip(costs, cost, strict=True)):
            return True
    return False


def another_study(store, name):
    one = [Objective(label="recall", better="higher")]
    return store.create_study(
        name=name,
        space_yaml="",
        space_name="tiny",
        objectives=one,
        seed=0,
        sampler="random",
        target="cpu",
        trials_wanted=3,
    )


def sql(url, statement, **parameters):
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)
    engine.dispose()


class TestStudies:
    def test_a_study_comes_back_as_it_was_given(self, store):
        study = store.study("first")
        assert study.space_yaml == "objectives: [decode_ms@chat-4k, recall]\n"
        assert study.objectives[1] == Objective(label="recall", better="higher")
        assert (study.signs, study.seed, study.target) == ((1, -1), 7, "h200_sxm")
        assert study.sampler == "tpe"
        assert (study.trials_wanted, study.status, study.counts) == (100, "running", {})
        assert study.ideal is study.reference is study.owner is None
        assert datetime.now(UTC) - study.created < timedelta(minutes=1)

    def test_studies_are_listed_newest_first_with_their_counts(self, store, tiny):
        finish(store, tiny(0), 0, [1.0, 0.5])
        finish(store, tiny(1), 1, [2.0, 0.4])
        store.reject_trial("first", 2, {}, "too wide", None)
        another_study(store, "second")
        second, first = store.studies()
        assert (second.name, second.counts, second.front_size) == ("second", {}, 0)
        assert (first.counts, first.front_size) == ({"complete": 2, "rejected": 1}, 1)

    def test_a_taken_name_raises(self, store):
        with pytest.raises(InputError, match="study 'first' exists already: resume it"):
            another_study(store, "first")

    def test_a_malformed_name_raises(self, store):
        for name in ("", "-a", "A", "a_b", "a b", "x" * 64, "a\n", "é"):
            with pytest.raises(InputError, match="1 to 63 lower-case letters"):
                another_study(store, name)
        assert another_study(store, "x" * 63).name == "x" * 63

    def test_an_unknown_study_names_the_nearest(self, store):
        for ask in (store.study, store.trials, store.front, store.measurements, store.next_number):
            with pytest.raises(InputError, match=r"^no study 'frist'; did you mean 'first'\?$"):
                ask("frist")
        with pytest.raises(InputError, match="no study 'frist'"):
            store.set_status("frist", "finished")
        with pytest.raises(InputError, match="no study 'frist'"):
            store.claim("frist", "me")

    def test_a_store_without_studies_says_so(self, store_url):
        with open_store(store_url) as store:
            assert store.studies() == []
            with pytest.raises(InputError, match="no study 'first'; the store has none yet"):
                store.study("first")

    def test_status_and_wanted_trials_change_and_the_time_is_kept(self, store):
        before = store.study("first")
        store.set_status("first", "interrupted")
        store.set_trials_wanted("first", 400)
        after = store.study("first")
        assert (after.status, after.trials_wanted) == ("interrupted", 400)
        assert after.updated > before.updated
        assert after.created == before.created


class TestTrials:
    def test_a_finished_trial_comes_back_whole(self, store, tiny):
        store.begin_trial("first", 0, tiny(3), {"d_model": 112, "rule": "every 4th", "share": 0.25})
        store.finish_trial(
            "first", 0, measured(tiny(3).key), [31.0, 0.9], False, {"memory_gib": 2.5}
        )
        (trial,) = store.trials("first")
        assert (trial.study, trial.number, trial.state) == ("first", 0, "complete")
        assert (trial.key, trial.pattern, trial.d_model) == (tiny(3).key, "*-", 112)
        assert (trial.num_layers, trial.total_params) == (1, trial.active_params)
        assert trial.parameters == {"d_model": 112, "rule": "every 4th", "share": 0.25}
        assert (trial.values, trial.feasible) == ([31.0, 0.9], False)
        assert (trial.violation, trial.on_front) == ({"memory_gib": 2.5}, False)
        assert trial.started < trial.ended

    def test_a_running_trial_has_no_answer_yet(self, store, tiny):
        store.begin_trial("first", 0, tiny(0), {})
        (trial,) = store.trials("first")
        assert (trial.state, trial.values, trial.feasible, trial.ended) == ("running",) + (
            None,
        ) * 3
        assert store.report("first", 0) is None

    def test_a_failure_is_kept_with_stage_kind_and_reason(self, store, tiny):
        store.begin_trial("first", 0, tiny(0), {})
        failure = Failure(key=tiny(0).key, stage="train", kind="oom", reason="needs 90 GiB of 80")
        store.fail_trial("first", 0, failure)
        (trial,) = store.trials("first")
        assert (trial.state, trial.stage, trial.kind) == ("failed", "train", "oom")
        assert (trial.reason, trial.values) == ("needs 90 GiB of 80", None)
        assert store.hypervolume_history("first") == []

    def test_a_rejection_is_kept_with_or_without_an_architecture(self, store, tiny):
        store.reject_trial("first", 0, {"heads": 7}, "num_heads must divide d_model", None)
        store.reject_trial("first", 1, {"heads": 8}, "a duplicate of trial 0", tiny(1))
        illegal, duplicate = store.trials("first")
        assert (illegal.state, illegal.key, illegal.pattern) == ("rejected", None, None)
        assert (duplicate.key, duplicate.reason) == (tiny(1).key, "a duplicate of trial 0")

    def test_a_report_comes_back_equal_and_in_order(self, store, tiny):
        finish(store, tiny(0), 0, [31.0, 0.9])
        assert store.report("first", 0) == measured(tiny(0).key)
        assert store.report("first", 1) is None

    def test_a_report_of_a_rung_is_kept_beside_the_last_one(self, store, tiny):
        store.begin_trial("first", 0, tiny(0), {})
        store.report_trial("first", 0, at_rung(tiny(0).key, 0, 0.4))
        assert store.measurements("first") == []
        assert store.report("first", 0) is None
        store.finish_trial("first", 0, at_rung(tiny(0).key, 1, 0.9), [1.0, 0.9], True, {})
        assert store.report("first", 0) == at_rung(tiny(0).key, 1, 0.9)
        assert [(m.rung, m.value) for m in store.measurements("first")] == [(1, 0.9)]
        rungs = [(m.number, m.rung, m.value) for m in store.rung_measurements("first")]
        assert rungs == [(0, 0, 0.4), (0, 1, 0.9)]

    def test_a_second_report_of_a_rung_replaces_the_first(self, store, tiny):
        store.begin_trial("first", 0, tiny(0), {})
        for recall in (0.4, 0.5):
            store.report_trial("first", 0, at_rung(tiny(0).key, 0, recall))
        assert [m.value for m in store.rung_measurements("first")] == [0.5]
        lost = Failure(key=tiny(0).key, stage="train", kind="lost", reason="node gone")
        store.fail_trial("first", 0, lost)
        store.report_trial("first", 0, at_rung(tiny(0).key, 0, 0.6))  # it came late
        assert [m.value for m in store.rung_measurements("first")] == [0.5]
        assert store.measurements("first") == []

    def test_measurements_make_a_data_frame(self, store, tiny):
        finish(store, tiny(1), 1, [30.0, 0.8])
        finish(store, tiny(0), 0, [31.0, 0.9])
        frame = pandas.DataFrame(store.measurements("first"))
        assert frame.number.tolist() == [0, 0, 0, 1, 1, 1]
        row = frame.iloc[4]
        assert (row.key, row["name"], row.workload) == (tiny(1).key, "decode_ms", "chat-4k")
        assert (row.low, row.provenance, row.device) == (29.5, "composed", "h200_sxm")

    def test_text_is_stored_verbatim_and_never_run(self, store, tiny):
        another = store.create_study(
            name="nasty",
            space_yaml=NASTY,
            space_name=NASTY,
            objectives=[Objective(label=NASTY, better="lower")],
            seed=2**62,
            sampler="tpe",
            target=NASTY,
            trials_wanted=1,
        )
        assert (another.space_yaml, another.target, another.objectives[0].label) == (NASTY,) * 3
        store.reject_trial("nasty", 0, {NASTY: NASTY}, NASTY, tiny(0))
        (trial,) = store.trials("nasty")
        assert (trial.parameters, trial.reason) == ({NASTY: NASTY}, NASTY)
        for ask in (store.study, store.architecture, store.trials_of):
            with pytest.raises(InputError, match="Robert"):
                ask(NASTY)

    def test_a_crash_message_may_hold_bytes_that_are_not_utf_8(self, store, tiny):
        store.begin_trial("first", 0, tiny(0), {})
        failure = Failure(key=tiny(0).key, stage="build", kind="crash", reason="a\0b \udcff")
        store.fail_trial("first", 0, failure)
        assert store.trials("first")[0].reason == r"a\x00b \udcff"

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_number_that_is_not_finite_raises_and_nothing_is_written(self, store, tiny, bad):
        store.begin_trial("first", 0, tiny(0), {})
        report = measured(tiny(0).key)
        with pytest.raises(ValueError, match="trial 0: objective must be finite"):
            store.finish_trial("first", 0, report, [bad, 0.5], True, {})
        with pytest.raises(ValueError, match="memory_gib must be finite"):
            store.finish_trial("first", 0, report, [1.0, 0.5], True, {"memory_gib": bad})
        with pytest.raises(ValueError, match="decode_ms@chat-4k must be finite"):
            store.finish_trial("first", 0, measured(tiny(0).key, bad), [1.0, 0.5], True, {})
        assert store.trials("first")[0].state == "running"
        assert store.measurements("first") == []

    def test_a_finish_is_all_or_nothing(self, store, tiny, monkeypatch):
        finish(store, tiny(0), 0, [2.0, 0.5])
        before = store.trials("first")
        store.begin_trial("first", 1, tiny(1), {})

        def lightning(*_):
            raise RuntimeError("lightning")

        monkeypatch.setattr(pareto, "admit", lightning)
        with pytest.raises(RuntimeError, match="lightning"):
            store.finish_trial("first", 1, measured(tiny(1).key), [1.0, 0.6], True, {})
        assert store.trials("first")[:1] == before
        assert store.trials("first")[1].state == "running"
        assert {m.number for m in store.measurements("first")} == {0}

    def test_a_trial_ends_once(self, store, tiny):
        finish(store, tiny(0), 0, [1.0, 0.5])
        before = store.trials("first")
        with pytest.raises(AssertionError, match="no trial 0"):
            store.finish_trial("first", 0, measured(tiny(0).key), [9.0, 0.1], True, {})
        lost = Failure(key=tiny(0).key, stage="train", kind="lost", reason="node gone")
        with pytest.raises(AssertionError, match="no trial 0"):
            store.fail_trial("first", 0, lost)
        assert store.trials("first") == before


class TestArchitectures:
    def test_an_architecture_is_found_by_any_unique_prefix(self, store, tiny):
        store.reject_trial("first", 0, {}, "no", tiny(0))
        key = tiny(0).key
        for prefix in (key, key[:5], key.upper()[:8]):
            assert store.architecture(prefix) == tiny(0)

    def test_an_unknown_key_raises(self, store, tiny):
        store.reject_trial("first", 0, {}, "no", tiny(0))
        for key in ("zzz", "%", "_", tiny(0).key + "0"):
            with pytest.raises(InputError, match="no architecture has a key that begins with"):
                store.architecture(key)

    def test_an_ambiguous_key_raises_and_names_the_candidates(self, store, tiny):
        for number in range(40):
            store.reject_trial("first", number, {}, "no", tiny(number))
        with pytest.raises(
            InputError, match=r"'' is ambiguous, give more digits: \w{12}, .*\.\.\.$"
        ):
            store.architecture("")

    def test_an_architecture_has_its_trials_in_all_studies(self, store, tiny):
        another_study(store, "second")
        finish(store, tiny(0), 4, [1.0, 0.5])
        finish(store, tiny(1), 5, [1.0, 0.5])
        store.reject_trial("second", 0, {}, "no", tiny(0))
        found = store.trials_of(tiny(0).key[:8])
        assert [(t.study, t.number, t.state) for t in found] == [
            ("first", 4, "complete"),
            ("second", 0, "rejected"),
        ]

    def test_the_trials_of_an_architecture_in_one_study(self, store, tiny):
        another_study(store, "second")
        finish(store, tiny(0), 4, [1.0, 0.5])
        store.reject_trial("second", 0, {}, "no", tiny(0))
        for study, number in (("first", 4), ("second", 0)):
            found = store.trials_of(tiny(0).key[:8], study)
            assert [(t.study, t.number) for t in found] == [(study, number)]
        with pytest.raises(InputError, match="no study 'third'"):
            store.trials_of(tiny(0).key, "third")


class TestTheFront:
    def test_a_dominated_candidate_leaves_the_front(self, store, tiny):
        finish(store, tiny(0), 0, [2.0, 0.5])
        finish(store, tiny(1), 1, [3.0, 0.8])
        finish(store, tiny(2), 2, [1.0, 0.6])
        left, stayed, came = store.trials("first")
        assert (left.on_front, left.front_entered, left.front_left) == (False, 0, 2)
        assert (stayed.on_front, stayed.front_entered, stayed.front_left) == (True, 1, None)
        assert (came.on_front, came.front_entered, came.front_left) == (True, 2, None)
        assert store.front("first") == [stayed, came]

    def test_an_infeasible_candidate_never_enters_the_front(self, store, tiny):
        finish(store, tiny(0), 0, [2.0, 0.5])
        finish(store, tiny(1), 1, [0.1, 0.9], feasible=False)
        assert [t.number for t in store.front("first")] == [0]
        assert [s.front_size for s in store.hypervolume_history("first")] == [1, 1]

    def test_equal_values_share_the_front(self, store, tiny):
        finish(store, tiny(0), 0, [2.0, 0.5])
        finish(store, tiny(1), 1, [2.0, 0.5])
        assert [t.number for t in store.front("first")] == [0, 1]

    def test_two_studies_have_two_fronts(self, store, tiny):
        another_study(store, "second")
        finish(store, tiny(0), 0, [2.0, 0.5])
        store.begin_trial("second", 0, tiny(0), {})
        store.finish_trial("second", 0, measured(tiny(0).key), [0.99], True, {})
        assert [(t.study, t.number) for t in store.front("first")] == [("first", 0)]
        assert store.study("second").front_size == 1

    @pytest.mark.parametrize("seed", range(3))
    def test_the_front_and_its_history_equal_a_recomputation_from_scratch(self, store, tiny, seed):
        draw = random.Random(seed)
        numbers = draw.sample(range(45), 45)  # trials complete in any order; a grid gives ties
        given = {
            n: ([float(draw.randint(1, 9)), draw.randint(1, 9) / 9], draw.random() < 0.8)
            for n in numbers
        }
        for number in numbers:
            finish(store, tiny(number), number, *given[number])
        study, steps = store.study("first"), store.hypervolume_history("first")
        trials = {t.number: t for t in store.trials("first")}
        assert [s.number for s in steps] == numbers
        previous: set[int] = set()
        for count, step in enumerate(steps, 1):
            seen = [n for n in numbers[:count] if given[n][1]]
            values = [given[n][0] for n in seen]
            front = {n for n in seen if not dominated(given[n][0], values, study.signs)}
            volume = pareto.hypervolume(values, study.signs, study.ideal, study.reference)
            assert (step.front_size, step.hypervolume) == (len(front), pytest.approx(volume))
            assert all(trials[n].front_entered == n for n in front - previous)
            assert all(trials[n].front_left == step.number for n in previous - front)
            previous = front
        assert {t.number for t in store.front("first")} == previous

    def test_the_box_is_fixed_once_and_earlier_steps_get_their_volumes(self, store, tiny):
        count = store_module.BOX_TRIALS
        for number in range(count - 1):
            finish(store, tiny(number), number, [20.0 - number, 0.5])
        assert {s.hypervolume for s in store.hypervolume_history("first")} == {None}
        finish(store, tiny(count), count, [10.0, 0.6])
        study, steps = store.study("first"), store.hypervolume_history("first")
        volumes = [s.hypervolume for s in steps]
        assert volumes == sorted(volumes)
        assert 0 < volumes[0] < volumes[-1] < 1
        finish(store, tiny(count + 1), count + 1, [0.1, 9.0])
        assert store.study("first").reference == study.reference
        assert store.hypervolume_history("first")[: len(steps)] == steps

    def test_a_short_study_gets_its_box_when_it_finishes(self, store, tiny):
        finish(store, tiny(0), 0, [2.0, 0.5])
        finish(store, tiny(1), 1, [1.0, 0.4], feasible=False)
        store.set_status("first", "finished")
        first, second = store.hypervolume_history("first")
        assert first.hypervolume == second.hypervolume > 0

    def test_a_study_that_finishes_with_nothing_has_no_box(self, store):
        store.set_status("first", "finished")
        assert store.study("first").reference is None


class TestTheDriver:
    def test_a_second_driver_is_rejected(self, store, store_url):
        store.claim("first", "host-a:1")
        with open_store(store_url) as other:
            held = "study 'first' is held by another driver, host-a:1, silent for 0 s"
            with pytest.raises(InputError, match=held):
                other.claim("first", "host-b:2")
            with pytest.raises(InputError, match=held):
                other.set_status("first", "finished")
        assert store.study("first").alive

    def test_a_driver_renews_its_claim_by_claiming_and_by_writing(self, store, store_url):
        store.claim("first", "me")
        for renew in (
            lambda: store.claim("first", "me"),
            lambda: store.reject_trial("first", store.next_number("first"), {}, "no", None),
        ):
            old = datetime(2020, 1, 1, tzinfo=UTC)
            sql(store_url, "UPDATE archfront_studies SET heartbeat = '2020-01-01 00:00:00.000000'")
            renew()
            assert store.study("first").heartbeat > old + timedelta(days=1)

    def test_a_silent_driver_is_replaced_and_can_write_no_more(self, store, store_url, tiny):
        store.claim("first", "old")
        store.begin_trial("first", 0, tiny(0), {})
        sql(store_url, "UPDATE archfront_studies SET heartbeat = '2020-01-01 00:00:00.000000'")
        assert not store.study("first").alive
        with open_store(store_url) as other:
            other.claim("first", "new")
            with pytest.raises(InputError, match="held by another driver, new"):
                store.finish_trial("first", 0, measured(tiny(0).key), [1.0, 0.5], True, {})
            with pytest.raises(InputError, match="held by another driver, new"):
                store.claim("first", "old")
            assert other.study("first").counts == {"running": 1}

    def test_a_driver_known_to_be_dead_is_replaced_at_once(self, store):
        store.claim("first", "old")
        with pytest.raises(InputError, match="held by another driver, old"):
            store.claim("first", "new", dead="older")
        store.claim("first", "new", dead="old")
        assert store.study("first").owner == "new"

    def test_a_released_study_is_free(self, store, store_url):
        store.claim("first", "a")
        store.release("first")
        assert not store.study("first").alive
        with open_store(store_url) as other:
            other.claim("first", "b")
            store.release("first")  # it holds nothing any more
            assert other.study("first").owner == "b"
            with pytest.raises(InputError, match="held by another driver, b"):
                store.set_status("first", "finished")

    def test_running_trials_are_taken_out_and_run_again_under_their_numbers(self, store, tiny):
        finish(store, tiny(0), 0, [1.0, 0.5])
        store.begin_trial("first", 1, tiny(1), {"d_model": 80})
        store.begin_trial("first", 2, tiny(2), {})
        assert store.next_number("first") == 3
        again = store.drop_running("first")
        assert [(t.number, t.key) for t in again] == [(1, tiny(1).key), (2, tiny(2).key)]
        assert store.drop_running("first") == []
        for trial in again:
            store.begin_trial(
                "first", trial.number, store.architecture(trial.key), trial.parameters
            )
        assert [t.state for t in store.trials("first")] == ["complete", "running", "running"]
        assert store.next_number("first") == 3

    def test_numbers_begin_at_zero(self, store):
        assert store.next_number("first") == 0

    def test_a_killed_driver_loses_no_finished_trial(self, store, store_url):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, store_url], stdout=subprocess.PIPE, text=True
        )
        said = driver.stdout.readline()
        assert said == "ready\n"
        finished = [int(driver.stdout.readline()) for _ in range(60)]
        driver.send_signal(signal.SIGKILL)
        finished += [int(line) for line in driver.stdout if line.endswith("\n")]
        driver.stdout.close()
        driver.wait()

        trials = {t.number: t for t in store.trials("first")}
        complete = [t for t in trials.values() if t.state == "complete"]
        assert {t.number for t in complete} >= set(finished)
        assert len(trials) <= len(finished) + 2
        assert len(store.hypervolume_history("first")) == len(complete)
        values = [t.values for t in complete]
        assert [t.number for t in store.front("first")] == [
            t.number for t in complete if not dominated(t.values, values, (1, -1))
        ]
        store.claim("first", "next", dead="doomed")
        store.drop_running("first")
        assert set(store.study("first").counts) == {"complete"}

    def test_a_reader_does_not_wait_for_a_writer(self, store, store_url, tiny):
        finish(store, tiny(0), 0, [1.0, 0.5])
        with open_store(store_url, readonly=True) as reader, store._database.writing() as writing:
            writing.execute(text("UPDATE archfront_studies SET target = 'elsewhere'"))
            assert reader.study("first").target == "h200_sxm"
            assert len(reader.trials("first")) == 1
        assert store.study("first").target == "elsewhere"


class TestOpening:
    def test_a_store_opens_again_as_it_was(self, store, store_url, tiny):
        finish(store, tiny(0), 0, [1.0, 0.5])
        with open_store(store_url) as again:
            assert again.trials("first") == store.trials("first")
            assert again.study("first") == store.study("first")

    def test_a_read_only_store_reads_and_does_not_write(self, store, store_url, tiny):
        finish(store, tiny(0), 0, [1.0, 0.5])
        with open_store(store_url, readonly=True) as reader:
            assert reader.trials("first") == store.trials("first")
            with pytest.raises(InputError, match="read-only"):
                reader.set_status("first", "finished")
        assert store.study("first").status == "running"

    def test_models_and_migrations_agree(self, store):
        with store._database.engine.connect() as connection:
            options = alembic_options(connection) | {
                "compare_type": True,
                "compare_server_default": True,
            }
            del options["connection"], options["target_metadata"]
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, Base.metadata) == []

    def test_the_tables_of_others_are_left_alone(self, store_url):
        sql(store_url, "CREATE TABLE studies (study_id INTEGER)")
        sql(store_url, "CREATE TABLE alembic_version (version_num TEXT)")
        sql(store_url, "INSERT INTO alembic_version VALUES ('v9.9')")
        with open_store(store_url) as store:
            another_study(store, "mine")
            names = inspect(store._database.engine).get_table_names()
        assert {"studies", "alembic_version", "archfront_studies"} < set(names)

    @pytest.mark.parametrize("readonly", [False, True])
    def test_a_newer_store_raises(self, store, store_url, readonly):
        sql(store_url, "UPDATE archfront_schema SET version_num = '0007'")
        with pytest.raises(
            InputError,
            match=f"has schema 0007, this archfront knows up to {SCHEMA}: upgrade archfront",
        ):
            open_store(store_url, readonly=readonly)

    def test_an_older_store_is_not_upgraded_by_a_reader(self, store, store_url):
        sql(store_url, "UPDATE archfront_schema SET version_num = '0000'")
        with pytest.raises(InputError, match=f"has schema 0000, this archfront reads {SCHEMA}"):
            open_store(store_url, readonly=True)

    def test_a_store_of_the_first_schema_gets_the_later_tables(self, store_url, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(database, "SCHEMA", "0001")
            open_store(store_url).close()
        with open_store(store_url) as upgraded:
            another_study(upgraded, "mine")
            upgraded.keep_timing(timed(2e-3))
            assert upgraded.timings("gpu") == [timed(2e-3)]

    def test_a_store_of_schema_0002_is_upgraded_with_all_it_holds(
        self, store_url, tiny, monkeypatch
    ):
        with monkeypatch.context() as patch:
            patch.setattr(database, "SCHEMA", "0002")
            open_store(store_url).close()
        fill_schema_0002(store_url, tiny)
        with open_store(store_url) as upgraded:
            study = upgraded.study("old")
            assert (study.sampler, study.counts) == ("tpe", {"complete": 1, "rejected": 2})
            assert [o.label for o in study.objectives] == ["proxy_decode_ms", "decode_ms@chat-4k"]
            assert study.space_yaml == NEW_SPACE
            complete, duplicate, invalid = upgraded.trials("old")
            assert (complete.key, complete.values) == (tiny(0).key, [3.0, 31.0])
            assert complete.violation == {"proxy_prefill_ms": -1.5, "memory_gib": -2.0}
            assert [(t.state, t.reason) for t in (duplicate, invalid)] == [
                ("rejected", "same architecture as trial 0"),
                ("rejected", "too wide"),
            ]
            report = upgraded.report("old", 0)
            assert [(m.name, m.value, m.rung) for m in report.measurements] == [
                ("proxy_decode_ms", 3.0, None),
                ("decode_ms", 31.0, None),
                ("total_params", 100.0, None),
            ]
            assert [s.front_size for s in upgraded.hypervolume_history("old")] == [1]
            head = replace(timed(2e-3), unit="embedding_and_head:abc")
            assert upgraded.timings("gpu") == [timed(2e-3), head]
            upgraded.keep_timing(head)  # under the key that it has
            assert upgraded.timings("gpu") == [timed(2e-3), head]
            assert upgraded.calibrations() == {"gpu": {"points": 30}}

    @pytest.mark.parametrize("options", [{"readonly": True}, {"create": False}])
    def test_an_empty_database_is_filled_only_to_create_a_store(self, store_url, options):
        sql(store_url, "CREATE TABLE other (x INTEGER)")
        with pytest.raises(InputError, match="holds no archfront store yet"):
            open_store(store_url, **options)
        open_store(store_url).close()
        open_store(store_url, **options).close()

    def test_an_older_store_is_upgraded_without_permission_to_create_one(
        self, store_url, monkeypatch
    ):
        with monkeypatch.context() as patch:
            patch.setattr(database, "SCHEMA", "0002")
            open_store(store_url).close()
        open_store(store_url, create=False).close()
        open_store(store_url, readonly=True).close()

    def test_many_processes_open_a_new_store_at_once(self, store_url):
        urls = [f"{store_url}{n}" for n in range(8)] if "sqlite" in store_url else [store_url]
        command = [sys.executable, "-W", "error", "-c", OPENER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        openers = [subprocess.Popen(command, **pipes) for _ in range(3)]
        assert {opener.stdout.readline() for opener in openers} == {"ready\n"}
        for url in urls:
            for opener in openers:
                opener.stdin.write(f"{url}\n")
                opener.stdin.flush()
            assert [opener.stdout.readline() for opener in openers] == ["[]\n"] * 3
        for opener in openers:
            assert opener.communicate()[0] == ""
        with open_store(urls[0]) as store:
            assert store.studies() == []

    def test_the_newest_migration_is_the_schema(self):
        folder = Path(store_module.__file__).parent / "migrations"
        assert ScriptDirectory(str(folder)).get_heads() == [SCHEMA]

    def test_a_store_in_order_is_opened_without_alembic(self, store, store_url):
        script = (
            "import sys; from archfront.orchestrator.store import open_store;"
            "open_store(sys.argv[1]).close();"
            "heavy = {'alembic', 'torch', 'ray', 'optuna', 'pandas'} & set(sys.modules);"
            "assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", script, store_url], check=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("runs.db", "got 'runs.db'; did you mean 'sqlite:///runs.db'?"),
        ("sqlite://runs.db", "a SQLite store is a file, .* did you mean 'sqlite:///runs.db'?"),
        ("sqlite:///", "a SQLite store is a file"),
        ("sqlite:///:memory:", "a SQLite store is a file"),
        ("sqlite:///runs.db?mode=ro", "did you mean 'sqlite:///runs.db'"),
        ("sqlite3:///runs.db", "got 'sqlite3://'; did you mean 'sqlite'?"),
        ("postgres://u:hunter2@h/d", "got 'postgres://'; did you mean 'postgresql'?"),
        ("mysql://u:hunter2@h/d", "got 'mysql://'; known: sqlite, postgresql"),
        ("u:hunter2@host", "a store is given as sqlite:///PATH or postgresql://"),
        ("postgresql://u:hun@ter2@h/d", "not a valid URL; .* in a password as %40"),
        ("postgresql://u:hunter2@h:port/d", "not a valid URL"),
        ("postgresql://u:hunter2@h", "the URL names no database"),
        ("postgresql://u:hunter2@127.0.0.1:1/d", "postgresql://u@127.0.0.1:1/d: .*refused"),
        ("postgresql://127.0.0.1:1/d?password=hunter2", "postgresql://127.0.0.1:1/d: .*refused"),
        ("sqlite:////no/such/folder/runs.db", "no such folder '/no/such/folder', create it first"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_url_that_leads_nowhere_raises_in_one_line_without_the_password(
    url, message, readonly, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_store(url, readonly=readonly)
    assert "\n" not in str(caught.value)
    assert "ter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class TestSqlite:
    def test_readers_need_a_store(self, tmp_path):
        open_store(f"sqlite:///{tmp_path}/runs.db").close()
        with pytest.raises(InputError, match=r"run\.db: no such store; did you mean 'runs\.db'\?"):
            open_store(f"sqlite:///{tmp_path}/run.db", readonly=True)
        assert [p.name for p in tmp_path.iterdir()] == ["runs.db"]

    def test_the_path_may_hold_anything_and_be_relative(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = "my runs 100% #1 é's;.db"
        with open_store(f"sqlite:///{name}") as store:
            another_study(store, "mine")
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_it_runs_in_wal_mode_with_foreign_keys(self, sqlite_url):
        with open_store(sqlite_url) as store, store._database.reading() as connection:
            asked = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            answers = [connection.scalar(text(f"PRAGMA {name}")) for name in asked]
        assert answers == ["wal", 1, 1, 30_000]

    @pytest.mark.parametrize("readonly", [False, True])
    def test_a_file_that_is_no_database_raises_and_is_kept(self, tmp_path, readonly):
        path = tmp_path / "space.yaml"
        path.write_text("d_model: 512\n" * 100)
        with pytest.raises(InputError, match=r"space\.yaml: is not a SQLite database"):
            open_store(f"sqlite:///{path}", readonly=readonly)
        assert path.read_text() == "d_model: 512\n" * 100

    def test_a_folder_raises(self, tmp_path):
        with pytest.raises(InputError, match="is a folder, expected a SQLite file"):
            open_store(f"sqlite:///{tmp_path}")

    def test_no_file_is_left_where_the_disk_is_full_at_once(
        self, sqlite_url, tmp_path, monkeypatch
    ):
        connect = sqlite3.connect

        def connect_small(*args, **kwargs):
            connection = connect(*args, **kwargs)
            connection.execute("PRAGMA max_page_count=5")
            return connection

        monkeypatch.setattr(sqlite3, "connect", connect_small)
        with pytest.raises(InputError, match=r"runs\.db: the disk is full, free some space"):
            open_store(sqlite_url)
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_fills_up_loses_no_finished_trial(self, sqlite_url, tiny):
        with open_store(sqlite_url) as store:
            another_study(store, "first")
            engine = store._database.engine
            engine.dispose()

            @event.listens_for(engine, "connect")
            def small(connection, _):
                connection.execute("PRAGMA max_page_count=40")

            def until_full():
                for number in range(1000):
                    store.begin_trial("first", number, tiny(number), {"note": "x" * 2000})
                    report = Report(key=tiny(number).key, measurements=())
                    store.finish_trial("first", number, report, [number / 1000], True, {})
                    finished.append(number)

            finished: list[int] = []
            with pytest.raises(InputError, match="the disk is full, free some space"):
                until_full()
            states = [t.state for t in store.trials("first")]
            assert states.count("complete") == len(finished) > 0
            event.remove(engine, "connect", small)
            engine.dispose()
            store.drop_running("first")
            finish_again = store.next_number("first")
            store.begin_trial("first", finish_again, tiny(finish_again), {"note": "x" * 2000})

    def test_a_finish_takes_milliseconds(self, sqlite_url, tiny):
        with open_store(sqlite_url) as store:
            store.create_study(
                name="first",
                space_yaml="",
                space_name="tiny",
                objectives=[Objective(label="decode_ms@chat-4k", better="lower")] * 3,
                seed=0,
                sampler="tpe",
                target="cpu",
                trials_wanted=300,
            )
            store.claim("first", "me")
            draw = random.Random(0)
            seconds = []  # of this process: others may share the machine
            for number in range(300):
                report = replace(
                    measured(tiny(number).key), measurements=measured("").measurements * 5
                )
                values = [draw.random() for _ in range(3)]
                store.begin_trial("first", number, tiny(number), {"d_model": number})
                before = time.process_time()
                store.finish_trial("first", number, report, values, True, {"memory_gib": -1.0})
                seconds.append(time.process_time() - before)
        assert statistics.median(seconds) < 0.015


@pytest.fixture
def nobodys_folder():
    """A folder that everyone may enter; pytest's own are its user's alone."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_plain_user(url, readonly):
    """Open a store as a user who is subject to permissions, and return the outcome."""
    script = (
        "import os, sys, tempfile\n"
        "from archfront.orchestrator.store import InputError, open_store\n"
        "open_store(f'sqlite:///{tempfile.mkdtemp()}/warm.db').close()\n"
        "if os.geteuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        "try:\n"
        "    with open_store(sys.argv[1], readonly=sys.argv[2] == 'True') as store:\n"
        "        print([study.name for study in store.studies()])\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, url, str(readonly)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class TestSqlitePermissions:
    def test_a_read_only_file_is_not_written(self, nobodys_folder):
        path = nobodys_folder / "runs.db"
        with open_store(f"sqlite:///{path}") as store:
            another_study(store, "mine")
        path.chmod(0o444)
        nobodys_folder.chmod(0o777)
        assert f"{path}: is read-only" in as_plain_user(f"sqlite:///{path}", readonly=False)

    def test_a_store_in_a_read_only_folder_can_be_read(self, nobodys_folder):
        path = nobodys_folder / "runs.db"
        with open_store(f"sqlite:///{path}") as store:
            another_study(store, "mine")
        nobodys_folder.chmod(0o555)
        assert as_plain_user(f"sqlite:///{path}", readonly=True) == "['mine']"
        assert [p.name for p in nobodys_folder.iterdir()] == ["runs.db"]

    def test_no_store_is_made_in_a_read_only_folder(self, nobodys_folder):
        nobodys_folder.chmod(0o555)
        said = as_plain_user(f"sqlite:///{nobodys_folder}/runs.db", readonly=False)
        assert "runs.db: cannot be opened, check the permissions" in said


class TestLabel:
    def test_a_sqlite_store_is_named_by_its_url(self, sqlite_url, tmp_path, monkeypatch):
        with open_store(sqlite_url) as store:
            assert store.label == sqlite_url
        monkeypatch.chdir(tmp_path)
        with open_store("sqlite:///runs.db") as store:
            assert store.label == "sqlite:///runs.db"

    def test_the_password_is_in_no_label_and_no_error(self, postgres_url):
        url = make_url(postgres_url).set(password="hunter2")
        given = url.render_as_string(hide_password=False) + "&sslpassword=hunter2"
        with open_store(given) as store:
            assert make_url(store.label) == make_url(postgres_url)
            with pytest.raises(DBAPIError) as caught, store._database.writing() as connection:
                connection.execute(text("SELECT nothing"))
        with pytest.raises((InputError, DBAPIError)) as unusable:
            open_store(given.replace("&sslpassword", "&no_such_option"))
        assert "hunter2" not in f"{caught.value} {unusable.value} {store._database!r}"


class TestPostgres:
    def test_a_missing_driver_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(InputError, match=r"pip install 'archfront\[postgres\]'"):
            open_store("postgresql://me@127.0.0.1:1/runs")

    def test_a_missing_database_is_named(self, postgres_url):
        url = postgres_url.replace("/archfront_", "/no_")
        with pytest.raises(InputError, match=r'postgresql://.*/no_.*: .*"no_.*" does not exist'):
            open_store(url)

    def test_an_unknown_connection_option_is_named(self, postgres_url):
        with pytest.raises(InputError, match='invalid connection option "colour"'):
            open_store(f"{postgres_url}&colour=blue")

    def test_a_user_who_may_not_create_tables_gets_the_reason(self, postgres_url):
        role = f"guest_{os.urandom(4).hex()}"
        sql(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
        url = make_url(postgres_url).set(username=role, password="hunter2")
        try:
            for grant, reason in (
                ("SELECT 1", "no schema has been selected to create in"),
                (f"GRANT USAGE ON SCHEMA public TO {role}", "permission denied for schema public"),
            ):
                sql(postgres_url, grant)
                with pytest.raises(InputError, match=reason) as caught:
                    open_store(url.render_as_string(hide_password=False))
                assert "hunter2" not in str(caught.value)
        finally:
            sql(postgres_url, f"DROP OWNED BY {role}")
            sql(postgres_url, f"DROP ROLE {role}")

    def test_a_server_that_went_away_raises_and_is_found_again(self, postgres_url):
        with open_store(postgres_url) as store:
            another_study(store, "first")
            with store._database.reading() as connection:
                pid = connection.scalar(text("SELECT pg_backend_pid()"))

            def write_while_the_server_goes_away():
                with store._database.writing() as connection:
                    connection.execute(text("SELECT 1"))
                    sql(postgres_url, "SELECT pg_terminate_backend(:pid)", pid=pid)
                    connection.execute(text("SELECT 1"))

            with pytest.raises(InputError, match="terminating connection"):
                write_while_the_server_goes_away()
            assert store.study("first").name == "first"


class TestTimings:
    def test_a_timing_comes_back_as_it_was_and_the_newer_one_wins(self, store):
        store.keep_timing(timed(2e-3))
        store.keep_timing(timed(3e-3))
        store.keep_timing(timed(1e-3, context=8192))
        assert store.timings("gpu") == [timed(3e-3), timed(1e-3, context=8192)]
        assert store.timings("another") == []

    def test_a_damaged_row_is_named(self, store, store_url):
        store.keep_timing(timed(2e-3))
        sql(store_url, "UPDATE archfront_timings SET low = 9")
        with pytest.raises(InputError, match=r"timing \w+ in the store is damaged"):
            store.timings("gpu")

    def test_a_calibration_replaces_the_older_one(self, store):
        store.keep_calibration("gpu", {"schema": 1, "points": 30})
        store.keep_calibration("gpu", {"schema": 1, "points": 100})
        assert store.calibrations() == {"gpu": {"schema": 1, "points": 100}}


# The prefix that metrics of the proxy model had in schema 0002.
OLD = "tw" + "in_"
OLD_SPACE = f"""\
name: old
# laws: this stays, and so does {OLD}b
laws:
  - moe.top_k * 4 <= moe.n_experts
objectives: [{OLD}decode_ms, decode_ms@chat-4k]
constraints: {{{OLD}prefill_ms: {{max: 4}}}}
"""
NEW_SPACE = f"""\
name: old
# laws: this stays, and so does {OLD}b
architecture_constraints:
  - moe.top_k * 4 <= moe.n_experts
objectives: [proxy_decode_ms, decode_ms@chat-4k]
constraints: {{proxy_prefill_ms: {{max: 4}}}}
"""


def fill_schema_0002(url, tiny):
    """A study, its trials, a timing and a calibration, as schema 0002 had them."""

    def add(table, **row):
        plain = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
        names = ", ".join(f'"{name}"' for name in row)
        places = ", ".join(f":{name}" for name in row)
        sql(url, f"INSERT INTO archfront_{table} ({names}) VALUES ({places})", **plain)

    when = "2026-01-01 00:00:00.000000"
    add(
        "studies",
        name="old",
        space_yaml=OLD_SPACE,
        space_name="old",
        objectives=[
            {"label": f"{OLD}decode_ms", "better": "lower"},
            {"label": "decode_ms@chat-4k", "better": "lower"},
        ],
        seed=1,
        target="h200_sxm",
        trials_wanted=3,
        status="finished",
        version="0.1",
        created=when,
        updated=when,
    )
    add(
        "architectures",
        key=tiny(0).key,
        document=tiny(0).plain(),
        pattern="*-",
        d_model=64,
        num_layers=1,
        total_params=100,
        active_params=100,
    )
    trial = {"study_id": 1, "parameters": {"d_model": 64}, "started": when, "ended": when}
    add(
        "trials",
        **trial,
        number=0,
        state="complete",
        architecture_key=tiny(0).key,
        values=[3.0, 31.0],
        feasible=True,
        violation={f"{OLD}prefill_ms": -1.5, "memory_gib": -2.0},
        on_front=True,
        front_entered=0,
        facts={"torch": "2.11"},
    )
    reason = "same architecture as trial 0"
    old_state = "ref" + "used"
    add(
        "trials",
        **trial,
        number=1,
        state=old_state,
        architecture_key=tiny(0).key,
        reason=reason,
    )
    add("trials", **trial, number=2, state=old_state, reason="too wide")
    of_trial = {"trial_id": 1, "provenance": "counted"}
    add("measurements", **of_trial, name=f"{OLD}decode_ms", value=3.0)
    add("measurements", **of_trial, name="decode_ms", workload="chat-4k", value=31.0)
    add("measurements", **of_trial, name="total_params", value=100.0)
    add("fronts", study_id=1, number=0, front_size=1)
    for piece, measured_at in (("block:abc", when), ("ends:abc", when.replace("2026", "2027"))):
        add(
            "timings",
            key=replace(timed(2e-3), unit=piece).key,
            piece=piece,
            device="gpu",
            point={"batch": 4, "tokens": 1, "context": 4096},
            seconds=2e-3,
            low=0.99 * 2e-3,
            high=1.01 * 2e-3,
            samples=30,
            drift=0.001,
            facts={"torch": "2.13"},
            measured=measured_at,
        )
    add("calibrations", device="gpu", document={"points": 30}, measured=when)


def timed(seconds, *, context=4096):
    return Timed(
        unit="block:abc",
        device="gpu",
        point=Point(batch=4, tokens=1, context=context),
        seconds=seconds,
        low=0.99 * seconds,
        high=1.01 * seconds,
        samples=30,
        drift=0.001,
        peak_bytes=None,
        facts={"torch": "2.13"},
    )
