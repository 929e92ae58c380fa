"""Choice of the tasks of a plan by the metrics that are needed."""

from collections.abc import Collection
from importlib import import_module
from typing import Any

from ...search_space.plan import Plan
from .task import Task


def tasks_for(plan: Plan, metrics: Collection[str] | None) -> list[Task[Any]]:
    """The tasks that measure any of `metrics`, in the plan's order; None stands for every metric.

    Raises InputError when a task's data cannot be read.
    """
    classes = {name: task_class(name) for name in plan.tasks}
    return [
        classes[name](settings)
        for name, settings in plan.tasks.items()
        if metrics is None or not set(metrics).isdisjoint(classes[name].metrics)
    ]


def task_class(name: str) -> type[Task[Any]]:
    """The implementation of the plan's task `name`: `TASK` of the module of that name here."""
    return import_module(f"{__package__}.{name}").TASK
