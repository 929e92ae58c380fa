"""A running study: asks the sampler what to try, judges the answers, writes the store.

The driver is the study's only writer and knows nothing of Ray: `next_trial` and `finish` are all
that a searcher calls. Everything it holds is rebuilt from the store, so a study can be resumed.
"""

import math
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from ..profilers.report import Failure, Measurement, Report
from ..profilers.static_metrics import static_metrics
from ..search_space.architecture import Architecture
from ..search_space.metrics import MetricRef
from ..search_space.space import SearchSpace
from .measuring import target_timings
from .progress import State, View
from .sampler import Outcome, Sampler
from .store import Objective, Store, Study, Trial

# So many refusals in a row mean that the space holds nothing new.
MAX_REFUSALS = 200
# The sampler loves what did well and may suggest it again and again; after a refused draw the
# next ones are random.
PATIENCE = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial that is about to run."""

    number: int
    architecture: Architecture
    known: tuple[Measurement, ...] = ()  # before it runs


def objectives(space: SearchSpace) -> tuple[Objective, ...]:
    """The space's objectives with the better side of each, which is the metric's own."""
    return tuple(
        Objective(label=label, better=MetricRef.parse(label).metric.better or "lower")
        for label in space.file.objectives
    )


def this_process() -> str:
    """How a driver signs its claim on a study."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(owner: str) -> bool:
    """Whether the signature is of a process of this machine that no longer runs."""
    host, _, process = owner.rpartition(":")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)  # signal 0 asks, and does nothing
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it is someone else's, and alive
    return False


class Driver:
    """One study while it runs; `view` sees each step."""

    def __init__(self, store: Store, study: Study, space: SearchSpace, view: View) -> None:
        self.store, self.study, self.space, self.view = store, study, space, view
        self.timings = target_timings(store, study.target)
        self.sampler = Sampler(space, [o.better for o in study.objectives], study.seed)
        self.started, self.deadline = time.monotonic(), math.inf
        self.running: dict[int, Candidate] = {}
        self.number_of: dict[str, int] = {}  # architectures tried, by key
        self.outcomes: dict[int, Outcome] = {}
        self.counts = {"complete": 0, "failed": 0, "rejected": 0}
        self.exhausted = False
        self.trials_wanted = study.trials_wanted
        self.next_number = store.next_number(study.name)
        self.cut_off = store.drop_running(study.name)
        earlier = store.trials(study.name)
        for trial in earlier:
            self._remember(trial)
        self.sampler.replay([self.outcomes[trial.number] for trial in earlier])
        self.front = store.front_now(study.name)
        self.done_before = self.done

    @property
    def done(self) -> int:
        """Finished trials: complete and failed ones."""
        return self.counts["complete"] + self.counts["failed"]

    @property
    def remaining(self) -> int:
        """How many trials are still to run."""
        return max(0, self.trials_wanted - self.done)

    def next_trial(self) -> Candidate | None:
        """The next candidate, written as running; None where the space has nothing new.

        Trials that a dead driver left are run again first, under their numbers. Rejected draws are
        answered here: broken laws, duplicates, and constraints that need no training to be broken.
        """
        if self.cut_off:
            return self._begin_again(self.cut_off.pop(0))
        for attempt in range(MAX_REFUSALS):
            number, self.next_number = self.next_number, self.next_number + 1
            suggestion = self.sampler.suggest(number, explore=attempt >= PATIENCE)
            architecture = suggestion.architecture
            if architecture is None:
                self._reject(number, suggestion.parameters, suggestion.rejection or "", None)
                continue
            known = self._known(architecture)
            if not isinstance(known, str):
                return self._begin(number, architecture, suggestion.parameters, known)
            self._reject(number, suggestion.parameters, known, architecture)
        self.exhausted = True
        return None

    def finish(self, number: int, answer: dict[str, Any] | None, *, lost: bool = False) -> None:
        """Judge and record an answer: a report or a failure as plain data, None for no answer.

        `lost` says that the trial did not come back, however often it was tried. A trial that the
        end of the search's time cut off stays as it is in the store: it runs again on resume.
        """
        candidate = self.running.pop(number)
        if answer is None and not lost and time.monotonic() >= self.deadline:
            return
        judged = self._judge(candidate, answer, lost)
        if isinstance(judged, Failure):
            self.store.fail_trial(self.study.name, number, judged)
            self.counts["failed"] += 1
            values, violation = None, {}
        else:
            values = [self._value(judged, o.label) for o in self.study.objectives]
            violation = self._violation(judged)
            feasible = all(excess <= 0 for excess in violation.values())
            self.store.finish_trial(self.study.name, number, judged, values, feasible, violation)
            self.front = self.store.front_now(self.study.name)
            self.counts["complete"] += 1
        outcome = Outcome(
            number=number,
            parameters=self.outcomes[number].parameters,
            values=None if values is None else tuple(values),
            violation=violation,
        )
        self.outcomes[number] = outcome
        self.sampler.tell(outcome)
        self._show()

    def _judge(
        self, candidate: Candidate, answer: dict[str, Any] | None, lost: bool
    ) -> Report | Failure:
        key = candidate.architecture.key

        def failure(kind: Any, reason: str) -> Failure:
            return Failure(key=key, stage="answer", kind=kind, reason=reason)

        if lost:
            return failure("lost", "the trial did not come back from its node or process")
        if answer is None:
            return failure("missing", "the worker returned without an answer")
        if "measurements" not in answer:
            return Failure.from_plain(answer)
        report = Report.from_plain(answer).beside(candidate.known)
        needed = [o.label for o in self.study.objectives] + list(self.space.file.constraints)
        for label in needed:
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
        assert value is not None, f"_judge let a report without {label} through"
        return value

    def _violation(self, report: Report) -> dict[str, float]:
        return {
            label: bound.violation(self._value(report, label))
            for label, bound in self.space.file.constraints.items()
        }

    def _known(self, architecture: Architecture) -> tuple[Measurement, ...] | str:
        """What is known before it runs; or why it need not: known already, or beyond a bound."""
        if architecture.key in self.number_of:
            return f"same architecture as trial {self.number_of[architecture.key]}"
        try:
            measurements = static_metrics(architecture, self.space.plan, self.timings)
        except ValueError as error:
            return str(error)
        known = Report(key=architecture.key, measurements=measurements)
        for label, bound in self.space.file.constraints.items():
            value = known.value(label)
            if value is not None and bound.violation(value) > 0:
                limit = (
                    f"{value:.4g} > {bound.max:g}"
                    if bound.max is not None
                    else f"{value:.4g} < {bound.min:g}"
                )
                return f"constraint {label}: {limit}"
        return measurements

    def _reject(
        self,
        number: int,
        parameters: dict[str, Any],
        reason: str,
        architecture: Architecture | None,
    ) -> None:
        self.store.reject_trial(self.study.name, number, parameters, reason, architecture)
        self.counts["rejected"] += 1
        if architecture is not None:  # else the sampler has told this one itself
            self.sampler.tell(_untold(number, parameters))

    def _begin(
        self,
        number: int,
        architecture: Architecture,
        parameters: dict[str, Any],
        known: tuple[Measurement, ...],
    ) -> Candidate:
        self.store.begin_trial(self.study.name, number, architecture, parameters)
        candidate = Candidate(number=number, architecture=architecture, known=known)
        self.running[number] = candidate
        self.number_of[architecture.key] = number
        self.outcomes[number] = _untold(number, parameters)
        self._show()
        return candidate

    def _begin_again(self, trial: Trial) -> Candidate:
        assert trial.key is not None, "a running trial has an architecture"
        parameters = dict(trial.parameters)
        self.sampler.expect(trial.number, parameters)
        architecture = self.store.architecture(trial.key)
        known = static_metrics(architecture, self.space.plan, self.timings)
        return self._begin(trial.number, architecture, parameters, known)

    def _remember(self, trial: Trial) -> None:
        self.counts[trial.state] += 1
        if trial.state == "rejected":
            illegal = trial.key is None
            outcome = _untold(trial.number, dict(trial.parameters), rejected=illegal)
        else:
            assert trial.key is not None, "a trial that ran has an architecture"
            self.number_of[trial.key] = trial.number
            outcome = Outcome(
                number=trial.number,
                parameters=dict(trial.parameters),
                values=None if trial.values is None else tuple(trial.values),
                violation=dict(trial.violation or {}),
            )
        self.outcomes[trial.number] = outcome

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


def _untold(number: int, parameters: dict[str, Any], *, rejected: bool = False) -> Outcome:
    """Nothing timings of the objectives; to tell a repeat its values again would only breed more."""
    return Outcome(
        number=number, parameters=parameters, values=None, violation={}, rejected=rejected
    )
