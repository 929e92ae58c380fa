"""The driver of a running study: asks the sampler, checks the results, writes the store.

The driver is the study's only writer and does not depend on Ray: `next_trial`, `report` and
`finish` are all that a searcher calls. Its state is rebuilt from the store, so that a study can be
resumed.
"""

import math
import os
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

from ..profilers.report import Failure, FailureKind, Measurement, Report
from ..profilers.static_metrics import static_metrics
from ..search_space.architecture import Architecture
from ..search_space.metrics import MetricRef
from ..search_space.space import SearchSpace
from .measuring import target_timings
from .progress import State, View
from .samplers.base import Outcome, Suggestion
from .samplers.registry import SAMPLERS
from .store import Objective, Store, Study, Trial

# After so many rejections in a row the space is taken to hold nothing new.
MAX_REJECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial that is about to run, with its static metrics."""

    number: int
    architecture: Architecture
    metrics: tuple[Measurement, ...] = ()


def objectives(space: SearchSpace) -> tuple[Objective, ...]:
    """The space's objectives with the better side of each, which is the metric's own."""
    return tuple(
        Objective(label=label, better=MetricRef.parse(label).metric.better or "lower")
        for label in space.file.objectives
    )


def this_process() -> str:
    """The name under which a driver in this process claims a study: HOST:PID."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(owner: str) -> bool:
    """Whether `owner` (see `this_process`) is a process of this machine that no longer runs."""
    host, _, process = owner.rpartition(":")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)  # sends nothing, checks that the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it exists and belongs to another user
    return False


class Driver:
    """One study while it runs; `view` sees each step.

    The caller holds the study's claim (Store.claim). Trials that a dead driver left running are
    taken out of the store and run again first, under their numbers.
    """

    def __init__(self, store: Store, study: Study, space: SearchSpace, view: View) -> None:
        self.store, self.study, self.space, self.view = store, study, space, view
        self.timings = target_timings(store, study.target)
        self.sampler = SAMPLERS[study.sampler](
            space,
            directions=[o.better for o in study.objectives],
            seed=study.seed,
            price=self._price,
        )
        self.started, self.deadline = time.monotonic(), math.inf
        self.running: dict[int, Candidate] = {}
        self.number_of: dict[str, int] = {}  # architectures tried, by key
        self.parameters: dict[int, dict[str, Any]] = {}  # of trials in flight
        self.counts = {"complete": 0, "failed": 0, "rejected": 0}
        self.exhausted = False
        self.trials_wanted = study.trials_wanted
        self.next_number = store.next_number(study.name)
        self.cut_off = store.drop_running(study.name)
        ended = store.trials(study.name)
        self.sampler.restore(
            [_outcome(trial) for trial in ended],
            {trial.number: dict(trial.parameters) for trial in self.cut_off},
        )
        for trial in ended:
            self.counts[trial.state] += 1
        for trial in (*ended, *self.cut_off):
            if trial.state != "rejected" and trial.key is not None:
                self.number_of[trial.key] = trial.number
        self.front = store.front_now(study.name)
        self.done_before = self.done

    @property
    def done(self) -> int:
        """Number of finished trials: complete and failed ones."""
        return self.counts["complete"] + self.counts["failed"]

    @property
    def remaining(self) -> int:
        """Number of trials still to finish."""
        return max(0, self.trials_wanted - self.done)

    @property
    def needed(self) -> tuple[str, ...]:
        """Labels of the metrics that a report must have: objectives and constraints."""
        return (*(o.label for o in self.study.objectives), *self.space.file.constraints)

    def next_trial(self) -> Candidate | None:
        """The next candidate, written as running; None where the space has nothing new.

        Rejected suggestions are written and given back to the sampler here: invalid ones, those
        beyond a constraint by their static metrics, and duplicates.
        """
        if self.cut_off:
            return self._begin_again(self.cut_off.pop(0))
        for _ in range(MAX_REJECTIONS):
            suggestion = self.sampler.ask(self.next_number)
            self.next_number += 1
            architecture, reason = suggestion.architecture, self._rejection(suggestion)
            if reason is None and architecture is not None:
                return self._begin(
                    suggestion.number, architecture, dict(suggestion.parameters), suggestion.metrics
                )
            self.store.reject_trial(
                self.study.name,
                suggestion.number,
                suggestion.parameters,
                reason or "",
                architecture,
            )
            self.counts["rejected"] += 1
            self.sampler.tell(suggestion.rejected())
        self.exhausted = True
        return None

    def report(self, number: int, answer: dict[str, Any]) -> None:
        """Record what a running trial measured at a rung: a report as plain data.

        Without effect for a trial that is not running: the event came late, or twice. Values that
        are not finite are left out; they count at `finish` only.
        """
        if number not in self.running or "measurements" not in answer:
            return
        report = Report.from_plain(answer)
        measured = tuple(m for m in report.measurements if m.rung is not None and _finite(m))
        self.store.report_trial(self.study.name, number, replace(report, measurements=measured))

    def finish(self, number: int, answer: dict[str, Any] | None, *, lost: bool = False) -> None:
        """Check and record the end of a trial: its last report or a failure as plain data.

        `answer` is None where there is none, `lost` says that the trial did not come back, however
        often it was tried. A trial that the end of the search's time cut off stays running in the
        store and runs again on resume. Without effect for a trial that is not running: the event
        came late, or twice.
        """
        candidate = self.running.pop(number, None)
        if candidate is None:
            return
        if answer is None and not lost and time.monotonic() >= self.deadline:
            return
        checked, parameters = self._checked(candidate, answer, lost), self.parameters.pop(number)
        if isinstance(checked, Failure):
            self.store.fail_trial(self.study.name, number, checked)
            self.counts["failed"] += 1
            outcome = Outcome(number=number, parameters=parameters, state="failed")
        else:
            values = [self._value(checked, o.label) for o in self.study.objectives]
            violation = self._violation(checked)
            feasible = all(excess <= 0 for excess in violation.values())
            self.store.finish_trial(self.study.name, number, checked, values, feasible, violation)
            self.front = self.store.front_now(self.study.name)
            self.counts["complete"] += 1
            outcome = Outcome(
                number=number,
                parameters=parameters,
                state="complete",
                values=tuple(values),
                violation=violation,
            )
        self.sampler.tell(outcome)
        self._show()

    def _checked(
        self, candidate: Candidate, answer: dict[str, Any] | None, lost: bool
    ) -> Report | Failure:
        key = candidate.architecture.key

        def failure(kind: FailureKind, reason: str) -> Failure:
            return Failure(key=key, stage="answer", kind=kind, reason=reason)

        if lost:
            return failure("lost", "the trial did not come back from its node or process")
        if answer is None:
            return failure("missing", "the worker returned without an answer")
        if "measurements" not in answer:
            return Failure.from_plain(answer)
        report = Report.from_plain(answer).beside(candidate.metrics)
        for label in self.needed:
            if report.value(label) is None:
                return failure("missing", f"the report has no {label}")
        for m in report.measurements:
            for number in (m.value, m.low, m.high):
                if number is not None and not math.isfinite(number):
                    return failure("nan", f"{m.label} is {number}")
        return report

    @staticmethod
    def _value(report: Report, label: str) -> float:
        value = report.value(label)
        assert value is not None, f"_checked let a report without {label} through"
        return value

    def _violation(self, report: Report) -> dict[str, float]:
        return {
            label: bound.violation(self._value(report, label))
            for label, bound in self.space.file.constraints.items()
        }

    def _price(self, architecture: Architecture) -> tuple[Measurement, ...]:
        return static_metrics(architecture, self.space.plan, self.timings)

    def _rejection(self, suggestion: Suggestion) -> str | None:
        """Why the suggestion is not run; None where it is."""
        if suggestion.rejection or suggestion.architecture is None:
            return suggestion.rejection
        key = suggestion.architecture.key
        if key in self.number_of:
            return f"duplicate: same architecture as trial {self.number_of[key]}"
        known = Report(key=key, measurements=suggestion.metrics)
        for label, bound in self.space.file.constraints.items():
            value = known.value(label)
            if value is not None and bound.violation(value) > 0:
                limit = (
                    f"{value:.4g} > {bound.max:g}"
                    if bound.max is not None
                    else f"{value:.4g} < {bound.min:g}"
                )
                return f"infeasible: constraint {label}: {limit}"
        return None

    def _begin(
        self,
        number: int,
        architecture: Architecture,
        parameters: dict[str, Any],
        metrics: tuple[Measurement, ...],
    ) -> Candidate:
        self.store.begin_trial(self.study.name, number, architecture, parameters)
        candidate = Candidate(number=number, architecture=architecture, metrics=metrics)
        self.running[number] = candidate
        self.number_of[architecture.key] = number
        self.parameters[number] = parameters
        self._show()
        return candidate

    def _begin_again(self, trial: Trial) -> Candidate:
        assert trial.key is not None, "a running trial has an architecture"
        architecture = self.store.architecture(trial.key)
        metrics = self._price(architecture)
        return self._begin(trial.number, architecture, dict(trial.parameters), metrics)

    def _show(self) -> None:
        front_size, hypervolume = self.front
        elapsed = time.monotonic() - self.started
        ended = self.done - self.done_before
        left = elapsed / ended * self.remaining if ended else math.inf
        left = min(left, self.deadline - time.monotonic())
        self.view.show(
            State(
                wanted=self.trials_wanted,
                complete=self.counts["complete"],
                failed=self.counts["failed"],
                rejected=self.counts["rejected"],
                running=len(self.running),
                front_size=front_size,
                hypervolume=hypervolume,
                seconds=elapsed,
                seconds_left=left if math.isfinite(left) else None,
            )
        )


def _finite(m: Measurement) -> bool:
    return all(math.isfinite(n) for n in (m.value, m.low, m.high) if n is not None)


def _outcome(trial: Trial) -> Outcome:
    """The outcome of a trial that has ended, as a sampler gets it."""
    number, parameters = trial.number, dict(trial.parameters)
    if trial.state == "complete":
        return Outcome(
            number=number,
            parameters=parameters,
            state="complete",
            values=tuple(trial.values or ()),
            violation=dict(trial.violation or {}),
        )
    if trial.state == "failed":
        return Outcome(number=number, parameters=parameters, state="failed")
    invalid = trial.key is None
    return Outcome(number=number, parameters=parameters, state="invalid" if invalid else "rejected")
