"""The contract of a quality task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch

from ...search_space.architecture import Architecture
from ...search_space.plan import TaskSettings

Settings = TypeVar("Settings", bound=TaskSettings)


class Run(ABC):
    """One training run of a proxy model, kept alive from rung to rung."""

    @abstractmethod
    def advance(self, fraction: float) -> Mapping[str, float]:
        """Train up to `fraction` of the run's steps; return the metrics measured at that step.

        Fractions never descend from call to call. Raises NotFinite, OutOfTime.
        """


class Task(ABC, Generic[Settings]):
    """A training task that measures the quality of a proxy model.

    A task is made once per trial and only when one of its `metrics` is needed. Then, in this
    order: the proxy architecture is derived, with windows scaled to `settings.context`; `count` is
    called once; `start` is called once per seed; at each rung of the plan, in order, `advance` is
    called once for every run. Between two calls of one run, other runs train in the same process;
    after any of them the trial may be dropped.

    What every task guarantees:

    - Paired data: what is read at a step depends on the settings and the seed, not on the proxy
      model or the rungs, so candidates are compared on the same data.
    - One schedule: `advance(f)` followed by `advance(1.0)` gives bit by bit what `advance(1.0)`
      alone gives. Measuring changes neither weights nor random streams.
    - No global random state is read or set.

    To add a task: a record derived from `TaskSettings` and a field of `Plan` with its defaults in
    search_space/plan.py, and the module of the field's name in this package, with the class as
    `TASK`. A metric that is new is listed in search_space/metrics.py.
    """

    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics that `count` and `advance` return together."""

    def __init__(self, settings: Settings) -> None:
        """Read what the settings name. Raises InputError."""
        self.settings = settings

    @property
    def facts(self) -> dict[str, str]:
        """Conditions beyond the settings that the values hold under, as the hash of a data set."""
        return {}

    def count(self, proxy: Architecture) -> Mapping[str, float]:
        """Metrics that follow from the proxy architecture without a run."""
        return {}

    @abstractmethod
    def start(
        self, proxy: Architecture, *, seed: int, device: torch.device, deadline: float
    ) -> Run:
        """Build the proxy model with the weights of `seed`, before its first step.

        `deadline` is a value of `time.monotonic`. Raises Unbuilt where the architecture has no
        module.
        """
