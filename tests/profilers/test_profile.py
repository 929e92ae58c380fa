"""A profile: one report per rung, only what is needed, and faults as the last result."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from archfront.profilers.profile import profile
from archfront.profilers.quality.recall import RecallRun
from archfront.profilers.report import Failure, Report
from archfront.profilers.training import Training
from archfront.search_space.metrics import METRICS
from archfront.search_space.plan import Plan

TEXT = {"context": 32, "batch": 4, "steps": 8}
RECALL = {"pairs": 2, "vocabulary": 8, "context": 12, "batch": 8, "steps": 8}
RUNGS = [{"fraction": 0.25}, {"fraction": 0.5}, {"fraction": 1.0}]
LATENCY = {"proxy_prefill_ms", "proxy_decode_ms"}


def plan_of(**fields: Any) -> Plan:
    return Plan.model_validate({"text": TEXT, "recall": RECALL, **fields})


def trained(report: Report | Failure) -> dict[str, tuple[float, float | None, float | None]]:
    """The metrics that do not depend on time: (value, low, high) by name."""
    assert isinstance(report, Report)
    return {
        m.name: (m.value, m.low, m.high) for m in report.measurements if not m.name.endswith("_ms")
    }


def test_a_plan_of_one_rung_gives_one_report_of_everything(architecture):
    (report,) = profile(architecture("*-G-"), plan_of(), seed=3)
    assert isinstance(report, Report)
    assert report.rung == 0
    assert {m.name for m in report.measurements} == LATENCY | {
        "bits_per_byte", "recall", "recall_cache_bytes", "proxy_step_ms", "proxy_parameters"
    }  # fmt: skip
    assert {m.name for m in report.measurements} <= METRICS.keys()
    assert report.facts.keys() == {
        "corpus", "corpus_sha256", "seed", "seeds", "torch", "python"
    }  # fmt: skip
    for m in report.measurements:
        if m.name in LATENCY:
            assert m.low is not None
            assert m.high is not None
            assert 0 < m.low <= m.value <= m.high


def test_the_last_of_several_rungs_equals_the_only_one_bit_by_bit(architecture):
    made = architecture("*-M-")
    (only,) = profile(made, plan_of(seeds=2), seed=3)
    reports = list(profile(made, plan_of(seeds=2, rungs=RUNGS), seed=3))
    assert [report.rung for report in reports if isinstance(report, Report)] == [0, 1, 2]
    assert trained(reports[-1]) == trained(only)
    assert trained(reports[0]) != trained(only)


def test_a_rung_does_not_depend_on_the_rungs_before_it(architecture):
    made = architecture("*-M-")
    at_half = list(profile(made, plan_of(rungs=RUNGS), seed=3))[1]
    first = next(profile(made, plan_of(rungs=RUNGS[1:]), seed=3))
    assert trained(first) == trained(at_half)


def test_measured_quality_names_its_rung_and_counts_name_none(architecture):
    for rung, report in enumerate(profile(architecture("*-"), plan_of(rungs=RUNGS), seed=0)):
        assert isinstance(report, Report)
        named = {m.name: m.rung for m in report.measurements}
        assert named["bits_per_byte"] == named["recall"] == named["proxy_step_ms"] == rung
        assert named["proxy_parameters"] is named["recall_cache_bytes"] is None
        assert named["proxy_decode_ms"] is None


def test_no_step_is_taken_until_the_next_report_is_asked_for(architecture, monkeypatch):
    steps: list[int] = []
    step = Training._step
    monkeypatch.setattr(Training, "_step", lambda run: (steps.append(1), step(run)))
    reports = profile(architecture("*-"), plan_of(rungs=RUNGS), seed=0, metrics={"recall"})
    assert not steps
    next(reports)
    assert len(steps) == 2
    next(reports)
    reports.close()
    assert len(steps) == 4


@pytest.mark.parametrize(
    ("metrics", "measured"),
    [
        ({"recall"}, LATENCY | {"recall", "recall_cache_bytes"}),
        ({"bits_per_byte"}, LATENCY | {"bits_per_byte", "proxy_step_ms", "proxy_parameters"}),
        ({"proxy_decode_ms"}, LATENCY),
        ({"total_params", "decode_ms"}, set()),
    ],
)
def test_only_the_tasks_that_the_metrics_need_are_run(
    architecture, metrics: set[str], measured: set[str]
):
    (report,) = profile(architecture("*-"), plan_of(), seed=0, metrics=metrics)
    assert isinstance(report, Report)
    assert {m.name for m in report.measurements} == measured
    assert ("corpus" in report.facts) == ("bits_per_byte" in metrics)


def test_a_task_alone_gives_the_numbers_it_gives_beside_others(architecture):
    made = architecture("*-")
    (everything,) = profile(made, plan_of(), seed=1)
    (alone,) = profile(made, plan_of(), seed=1, metrics={"recall"})
    assert trained(alone)["recall"] == trained(everything)["recall"]


def test_a_loss_that_is_not_finite_at_a_later_rung_ends_with_a_failure(architecture, monkeypatch):
    made, factors, loss = architecture("*-"), iter([1.0, 1.0, math.nan]), RecallRun._loss
    monkeypatch.setattr(RecallRun, "_loss", lambda run, batch: loss(run, batch) * next(factors))
    first, last = profile(made, plan_of(rungs=RUNGS), seed=0, metrics={"recall"})
    assert isinstance(first, Report)
    assert isinstance(last, Failure)
    assert (last.kind, last.stage, last.key) == ("nan", "train", made.key)
    assert "step 2 of 8" in last.reason


def test_the_time_limit_ends_with_a_failure(architecture, monkeypatch):
    long_ago = SimpleNamespace(monotonic=lambda: -1e9)
    monkeypatch.setattr("archfront.profilers.profile.time", long_ago)
    (failure,) = profile(architecture("*-"), plan_of(), seed=0)
    assert isinstance(failure, Failure)
    assert failure.kind == "hang"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 90 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_a_failure_of_one_line(architecture, monkeypatch, error):
    def advance(run: Any, fraction: float) -> None:
        raise error

    monkeypatch.setattr(Training, "advance", advance)
    (failure,) = profile(architecture("*-"), plan_of(), seed=0)
    assert isinstance(failure, Failure)
    assert failure.kind == "oom"
    assert failure.reason
    assert "\n" not in failure.reason


def test_an_error_of_the_program_is_raised(architecture, monkeypatch):
    def advance(run: Any, fraction: float) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Training, "advance", advance)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(profile(architecture("*-"), plan_of(), seed=0))
