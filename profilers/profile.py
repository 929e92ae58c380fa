"""Profile of one candidate: its proxy model trained and timed, with a report at each rung."""

import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from ..builders.body import Unbuilt
from ..search_space.accounting import Uncountable
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan
from ..search_space.proxy import proxy_architecture
from .out_of_memory import is_out_of_memory
from .proxy_latency import PROXY_LATENCY, proxy_latency
from .quality.measure import measure
from .quality.task import Task
from .quality.tasks import tasks_for
from .report import Failure, FailureKind, Measurement, Report
from .training import NotFinite, OutOfTime


def profile(
    architecture: Architecture,
    plan: Plan,
    *,
    seed: int,
    metrics: Collection[str] | None = None,
) -> Iterator[Report | Failure]:
    """Measure a candidate's proxy model: one Report per rung of the plan, or a Failure at the end.

    Only the tasks that `metrics` (names without workload) need are run; None stands for every
    metric. A proxy model that is trained is timed too. What needs no run is in static_metrics.py.
    Training goes on when the next report is asked for.

    Out of memory, a loss that is not finite and the time limit are Failures, and so is an
    architecture that has no module; an error of the program itself is raised. Raises InputError
    when a task's data cannot be read, ValueError when the proxy cannot hold the architecture.
    """
    deadline = time.monotonic() + plan.trial_seconds
    stage = "train"

    def failure(kind: FailureKind, reason: str) -> Failure:
        return Failure(key=architecture.key, stage=stage, kind=kind, reason=reason)

    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tasks = tasks_for(plan, metrics)
        at_rungs = measure(architecture, tasks, plan, seed=seed, device=device, deadline=deadline)
        latency: tuple[Measurement, ...] = ()
        for rung, quality in enumerate(at_rungs):
            if rung == 0 and (tasks or metrics is None or not PROXY_LATENCY.isdisjoint(metrics)):
                stage = "time"
                latency = _latency(architecture, plan, device)
                stage = "train"
            yield Report(
                key=architecture.key,
                measurements=(*quality, *latency),
                facts=facts(plan, tasks, seed),
                rung=rung,
            )
    except NotFinite as fault:
        yield failure("nan", str(fault))
    except OutOfTime as fault:
        yield failure("hang", str(fault))
    except (Unbuilt, Uncountable) as fault:
        yield failure("error", str(fault))
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        yield failure("oom", (str(fault) or "out of memory").splitlines()[0])


def _latency(
    architecture: Architecture, plan: Plan, device: torch.device
) -> tuple[Measurement, ...]:
    proxy = proxy_architecture(
        architecture, plan.proxy, context_fraction=plan.context_fraction(plan.text.context)
    )
    return proxy_latency(proxy, plan.text, device=device)


def facts(plan: Plan, tasks: Sequence[Task[Any]], seed: int) -> dict[str, str]:
    """The conditions that a report's numbers hold under."""
    of_tasks = {name: value for task in tasks for name, value in task.facts.items()}
    return {
        **of_tasks,
        "seed": str(seed),
        "seeds": str(plan.seeds),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
