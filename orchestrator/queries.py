"""Queries on a store that the command line and the dashboard share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..profilers.report import Measurement, Report
from ..profilers.static_metrics import static_metrics
from ..search_space import published
from ..search_space.architecture import Architecture
from ..search_space.check import check_space
from ..search_space.document import parse_document
from .measuring import target_timings
from .pareto import knee
from .store import Store, Study, Trial


@dataclass(frozen=True, kw_only=True)
class FrontEntry:
    """A trial on the front with its report."""

    trial: Trial
    report: Report

    def measurement(self, label: str) -> Measurement | None:
        """The measurement of a metric, see `Report.find`."""
        return self.report.find(label)


def front_entries(store: Store, study: Study) -> list[FrontEntry]:
    """The front, best first in the first objective."""
    entries = []
    for trial in store.front(study.name):
        report = store.report(study.name, trial.number)
        assert report is not None, "a trial on the front has a report"
        entries.append(FrontEntry(trial=trial, report=report))
    sign = study.signs[0]
    return sorted(entries, key=lambda entry: sign * (entry.trial.values or [0.0])[0])


def knee_index(study: Study, trials: Sequence[Trial]) -> int:
    """The index of the knee among the trials of a front, which is not empty."""
    return knee([trial.values or [] for trial in trials], study.signs)


class PublishedMetric(NamedTuple):
    """One static metric of a published model: a row for a data frame."""

    model: str
    pattern: str
    label: str
    value: float


def published_metrics(store: Store, study: Study) -> Iterator[PublishedMetric]:
    """The static metrics of each published model under the study's plan.

    A model that the target or its workloads cannot run has no rows.
    """
    space = check_space(parse_document(study.space_yaml, source=f"study {study.name}"))
    plan, timings = space.for_target(study.target).plan, target_timings(store, study.target)
    for name in published.names():
        architecture: Architecture = published.entry(name).architecture
        try:
            known = static_metrics(architecture, plan, timings)
        except ValueError:  # the target has no FP8 units, or the model is an encoder-decoder
            continue
        for m in known:
            yield PublishedMetric(name, architecture.pattern, m.label, m.value)
