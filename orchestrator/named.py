"""An architecture by any name: a YAML file, an entry of the atlas, a key of the store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..profilers.known import known_before_training
from ..profilers.report import Report
from ..search_space import published
from ..search_space.document import InputError, nearest
from ..search_space.workload import Workload
from .export import Exported, best_known, exported, read_config
from .store import Store
from .text import Column


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


def column(found: Named, *, target: str | None, context: int | None, batch: int | None) -> Column:
    """A column of a comparison: what trials measured, or what is known without training.

    A target, context or batch asks for estimates there instead. Raises InputError when the target
    cannot run it.
    """
    architecture, plan = found.config.architecture, found.config.profile
    report = found.report
    if report is None or target or context or batch:
        first = plan.workloads[0]
        here = Workload(
            name=f"{context or first.decode_context}x{batch or first.decode_batch}",
            prefill_tokens=context or first.prefill_tokens,
            decode_batch=batch or first.decode_batch,
            decode_context=context or first.decode_context,
        )
        at = (here,) if context or batch else plan.workloads
        plan = plan.model_copy(update={"target": target or plan.target, "workloads": at})
        try:
            known = known_before_training(architecture, plan)
        except ValueError as error:
            raise InputError(f"{found.label}: {error}") from None
        measured = [m for m in report.measurements if m.provenance == "measured"] if report else []
        report = Report(key=architecture.key, measurements=(*known, *measured))
    return Column(name=found.label, architecture=architecture, report=report)
