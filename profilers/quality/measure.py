"""Tasks run rung by rung and seed by seed, as measurements."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ...search_space.architecture import Architecture
from ...search_space.plan import Plan
from ...search_space.proxy import proxy_architecture
from ..local_device import local_device_name
from ..report import Measurement
from .statistics import mean_interval
from .task import Task


def measure(
    architecture: Architecture,
    tasks: Sequence[Task[Any]],
    plan: Plan,
    *,
    seed: int,
    device: torch.device,
    deadline: float,
) -> Iterator[tuple[Measurement, ...]]:
    """The measurements of all tasks at each rung of the plan, at seeds from `seed` on.

    Each task's proxy is derived once and built once per seed; a run goes on where the rung before
    left it. `deadline` is a value of `time.monotonic`. Raises ValueError when the proxy cannot
    hold the architecture, Unbuilt, NotFinite, OutOfTime.
    """
    fractions = [rung.fraction for rung in plan.rungs]
    where = local_device_name(device)
    proxies = [
        proxy_architecture(
            architecture,
            plan.proxy,
            context_fraction=plan.context_fraction(task.settings.context),
        )
        for task in tasks
    ]
    counts = [task.count(proxy) for task, proxy in zip(tasks, proxies, strict=True)]
    runs = [
        [
            _values(task, proxy, fractions, seed=s, device=device, deadline=deadline)
            for s in range(seed, seed + plan.seeds)
        ]
        for task, proxy in zip(tasks, proxies, strict=True)
    ]
    for rung in range(len(fractions)):
        found: list[Measurement] = []
        for task, counted, of_seeds in zip(tasks, counts, runs, strict=True):
            values = [next(run) for run in of_seeds]
            for name in task.metrics:
                if name in counted:
                    found.append(Measurement.counted(name, counted[name]))
                    continue
                value, low, high = mean_interval([of_seed[name] for of_seed in values])
                found.append(
                    Measurement.measured(name, value, device=where, low=low, high=high, rung=rung)
                )
        yield tuple(found)


def _values(
    task: Task[Any],
    proxy: Architecture,
    fractions: Sequence[float],
    *,
    seed: int,
    device: torch.device,
    deadline: float,
) -> Iterator[Mapping[str, float]]:
    """One run's values at each fraction; the model lives from the first to the last of them."""
    run = task.start(proxy, seed=seed, device=device, deadline=deadline)
    for fraction in fractions[:-1]:
        yield run.advance(fraction)
    final = run.advance(fractions[-1])
    del run
    yield final
