"""Lookup of names on the command line: stores, studies, architectures, workloads."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...profilers.cluster import Cluster, cluster
from ...profilers.pricing import TargetTimings
from ...profilers.report import Report
from ...profilers.static_metrics import static_metrics
from ...search_space import published
from ...search_space.document import InputError, constraint_of, nearest
from ...search_space.plan import Plan
from ...search_space.workload import WORKLOADS, Workload
from ..export import Exported, best_known, exported, read_config
from ..measuring import target_timings
from ..store import Store, Study, Trial, open_store
from ..store_url import DEFAULT_STORE
from .render import Column


def open_existing(url: str) -> Store:
    """The store, read-only. Raises InputError where there is none."""
    return open_store(url, readonly=True)


def newest_study(store: Store) -> Study:
    """The study that was created last. Raises InputError where there is none."""
    found = store.studies()
    if not found:
        raise InputError("the store has no study yet: archfront search SPACE.yaml")
    return found[0]


def free_study_name(store: Store, space: str) -> str:
    """`SPACE-N` with the smallest N that is free."""
    taken = {study.name for study in store.studies()}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{space}-{n}") not in taken)


def timings_at(url: str, target: str) -> tuple[TargetTimings, Cluster]:
    """The timings of a target in the store, and the target with the device as it was measured.

    Without the default store there are no timings yet. Raises InputError.
    """
    at = cluster(target)
    if url == DEFAULT_STORE and not Path(url.removeprefix("sqlite:///")).exists():
        return TargetTimings(), at
    with open_existing(url) as store:
        timings = target_timings(store, target)
    return timings, timings.target(at)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """An architecture with its plan, and the report if a trial has measured it."""

    label: str
    config: Exported
    report: Report | None = None


def resolve(name: str, url: str, study: str | None = None) -> Resolved:
    """The architecture of a YAML file, of the atlas, or of a key in the store.

    The store is opened for a key only; `study` says in which study to look it up. Raises
    InputError: no such file, or neither a published model nor a key.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Resolved(label=Path(name).name, config=read_config(Path(name)))
    if found := published.find(name):
        architecture = published.entry(found).architecture
        config = Exported(key=architecture.key, architecture=architecture)
        return Resolved(label=found, config=config)
    try:
        with open_existing(url) as store:
            trial, report = best_known(store, name, study)
            report_choice(store, trial, study)
            config = exported(store, name, study)
            return Resolved(label=report.key, config=config, report=report)
    except InputError as error:
        near = nearest(name, published.names())
        raise InputError(
            f"{name}: neither a YAML file, nor in the atlas{near}, nor a key: {error}"
        ) from None


def report_choice(store: Store, chosen: Trial, study: str | None) -> None:
    """Print on stderr which trial was chosen if several studies have one and none was named."""
    assert chosen.key is not None, "a completed trial has an architecture"
    complete = [trial for trial in store.trials_of(chosen.key) if trial.state == "complete"]
    names = sorted({trial.study for trial in complete})
    if study is None and len(names) > 1:
        print(
            f"{chosen.key} is in the studies {', '.join(names)}: took its newest trial, "
            f"{chosen.number} of {chosen.study}; --study names another",
            file=sys.stderr,
        )


def column(
    found: Resolved,
    *,
    target: str | None,
    context: int | None,
    batch: int | None,
    timings: Mapping[str, TargetTimings],
) -> Column:
    """A column of a comparison: the report of a trial, or the static metrics.

    With a target, context or batch, the static metrics are those at that point; `timings` is by
    target. Raises InputError when the target cannot run the architecture.
    """
    architecture, plan = found.config.architecture, found.config.profile
    report = found.report
    if report is None or target or context or batch:
        at = workloads_of(plan, (), context=context, batch=batch)
        plan = plan.model_copy(update={"target": target or plan.target, "workloads": at})
        try:
            known = static_metrics(architecture, plan, timings[plan.target])
        except ValueError as error:
            raise InputError(f"{found.label}: {error}") from None
        measured = [m for m in report.measurements if m.provenance == "measured"] if report else []
        report = Report(key=architecture.key, measurements=(*known, *measured))
    return Column(name=found.label, architecture=architecture, report=report)


def workloads_of(
    plan: Plan, names: Sequence[str], *, context: int | None, batch: int | None
) -> tuple[Workload, ...]:
    """The workloads by name, one at a context and batch, or those of the plan.

    Raises InputError for an unknown name, with similar ones, and for a point beyond any device.
    """
    own = {workload.name: workload for workload in plan.workloads}
    for name in names:
        if name not in WORKLOADS | own:
            raise InputError(f"unknown workload {name!r}{nearest(name, WORKLOADS | own)}")
    chosen = tuple((WORKLOADS | own)[name] for name in names) or plan.workloads
    if context is None and batch is None:
        return chosen
    first = chosen[0]
    context, batch = context or first.decode_context, batch or first.decode_batch
    fields = {
        "name": f"{context}x{batch}",
        "prefill_tokens": context,
        "decode_batch": batch,
        "decode_context": context,
    }
    try:
        return (Workload.model_validate(first.model_dump() | fields),)
    except ValidationError as error:
        fault = error.errors()[0]
        option = "--batch" if fault["loc"][-1] == "decode_batch" else "--context"
        raise InputError(f"{option}: {constraint_of(fault, Workload)}") from None
