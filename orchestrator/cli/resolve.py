"""An architecture by any name: a YAML file, an entry of the atlas, a key of the store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...profilers.pricing import TargetTimings
from ...profilers.report import Report
from ...profilers.static_metrics import static_metrics
from ...search_space import published
from ...search_space.document import InputError, nearest
from ...search_space.plan import Plan
from ...search_space.workload import WORKLOADS, Workload
from ..export import Exported, best_known, exported, read_config
from ..store import Store
from .render import Column


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a name stands for: the config, and the report where a trial has measured it."""

    label: str
    config: Exported
    report: Report | None = None


def named(name: str, open_store: Callable[[], Store]) -> Named:
    """Find what a name means; the store is opened only for what is neither file nor entry.

    Raises InputError: no such file, or neither an entry nor a key.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Named(label=Path(name).name, config=read_config(Path(name)))
    if found := published.find(name):
        architecture = published.entry(found).architecture
        config = Exported(key=architecture.key, architecture=architecture)
        return Named(label=found, config=config)
    try:
        with open_store() as store:
            _, report = best_known(store, name)
            return Named(label=report.key, config=exported(store, name), report=report)
    except InputError as error:
        near = nearest(name, published.names())
        raise InputError(
            f"{name}: neither a YAML file, nor in the atlas{near}, nor a key: {error}"
        ) from None


def column(
    found: Named,
    *,
    target: str | None,
    context: int | None,
    batch: int | None,
    timings: Mapping[str, TargetTimings],
) -> Column:
    """A column of a comparison: what trials measured, or what is known without training.

    A target, context or batch asks for estimates there instead; `timings` is by target. Raises
    InputError when the target cannot run it.
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
    """The points asked for: named ones, one at a context and batch, or the plan's.

    Raises InputError for an unknown name, with near ones, and for a point beyond any device.
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
        raise InputError(f"{fault['loc'][-1]}: {fault['msg']}, got {fault['input']}") from None
