"""The plan of a candidate's profile: target, workloads, proxy model, tasks, rungs, seeds."""

from itertools import pairwise
from typing import Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from .document import Record, nearest
from .workload import WORKLOADS, Workload

MAX_PROXY_WIDTH, MAX_PROXY_LAYERS = 8192, 256  # beyond what trains in seconds


class ProxySettings(Record):
    """Size of the proxy model that is trained in a candidate's place (search_space/proxy.py)."""

    d_model: int = Field(default=64, ge=1, le=MAX_PROXY_WIDTH)
    """Width of the residual stream."""
    layers: int = Field(default=4, ge=1, le=MAX_PROXY_LAYERS)
    """Number of layers, at least one for each kind of layer that the candidate has."""


class TaskSettings(Record):
    """Base of the settings of a quality task: its training run.

    A field of `Plan` whose type derives from it is a task; the module of the field's name in
    profilers/quality/ implements it.
    """

    context: PositiveInt
    """Tokens per training sequence."""
    batch: PositiveInt
    """Sequences per training step."""
    steps: PositiveInt
    """Training steps of the whole run."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""


class TextSettings(TaskSettings):
    """Training on bytes of text; the result is bits per byte on held-out text."""

    context: PositiveInt = 128
    """Bytes per training sequence."""
    batch: PositiveInt = 4
    """Sequences per training step."""
    steps: PositiveInt = 60
    """Training steps of the whole run."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate of AdamW."""
    corpus: str | None = None
    """A text file or a folder of them; null stands for the sources of Python's standard library."""


class RecallSettings(TaskSettings):
    """Multi-query associative recall (MQAR, arXiv 2312.04927): key-value pairs, then queries.

    The result is the fraction of queries answered with the value of their key.
    """

    context: PositiveInt = 20
    """Tokens per training sequence: 2 * pairs for the pairs, the others are queries."""
    batch: PositiveInt = 24
    """Sequences per training step."""
    steps: PositiveInt = 100
    """Training steps of the whole run."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Peak learning rate of AdamW."""
    pairs: PositiveInt = 5
    """Key-value pairs per sequence; context and vocabulary are at least 4 * pairs."""
    vocabulary: PositiveInt = 20
    """Symbols: the lower half are keys, the upper half values."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        for field, value in (("context", self.context), ("vocabulary", self.vocabulary)):
            if value < 4 * self.pairs:
                raise ValueError(
                    f"{field} must be at least 4 * pairs, got {field}={value}, pairs={self.pairs}"
                )
        return self


class Rung(Record):
    """A point of the training run at which a trial reports."""

    fraction: float = Field(gt=0, le=1)
    """Fraction of each task's training steps, above 0 and at most 1."""


class Plan(Record):
    """Everything besides the architecture that a candidate's numbers depend on."""

    target: str = "h200_sxm"
    """Device that latency and memory are estimated for; several devices as `8xNAME`."""
    workloads: tuple[Workload, ...] = Field(default=(WORKLOADS["chat-4k"],), min_length=1)
    """Serving and training workloads: names of known ones, or records."""
    proxy: ProxySettings = ProxySettings()
    """Size of the proxy model."""
    text: TextSettings = TextSettings()
    """Language modeling on bytes of text."""
    recall: RecallSettings = RecallSettings()
    """Multi-query associative recall."""
    rungs: tuple[Rung, ...] = (Rung(fraction=1.0),)
    """Points of the training run at which a trial reports: ascending fractions, the last is 1.0.

    The learning-rate schedule is that of the whole run, whatever the rungs."""
    seeds: PositiveInt = 1
    """Training runs of each task. All candidates read the same data at the same seed; the mean is
    reported, and from two seeds on its 90% Student-t interval."""
    trial_seconds: PositiveInt = 600
    """Time limit of a trial in seconds; a trial beyond it is recorded as failed, kind `hang`."""

    @field_validator("workloads", mode="before")
    @classmethod
    def _by_name(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            return given
        if unknown := [w for w in given if isinstance(w, str) and w not in WORKLOADS]:
            raise ValueError(f"unknown workload {unknown[0]!r}{nearest(unknown[0], WORKLOADS)}")
        return [WORKLOADS[w] if isinstance(w, str) else w for w in given]

    @field_validator("workloads")
    @classmethod
    def _named_once(cls, given: tuple[Workload, ...]) -> tuple[Workload, ...]:
        names = [workload.name for workload in given]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names of workloads must differ, got {twice[0]} twice")
        return given

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, rungs: tuple[Rung, ...]) -> tuple[Rung, ...]:
        fractions = [rung.fraction for rung in rungs]
        ascending = all(earlier < later for earlier, later in pairwise(fractions))
        if not ascending or fractions[-1:] != [1.0]:
            raise ValueError(f"rungs must have ascending fractions, the last 1.0, got {fractions}")
        return rungs

    @property
    def tasks(self) -> dict[str, TaskSettings]:
        """The settings of every quality task by the name of its field."""
        return {name: value for name, value in self if isinstance(value, TaskSettings)}

    def context_fraction(self, context: int) -> float:
        """A task's context over the first workload's, at most 1: the proxy's windows shrink by it.

        So a window covers the same fraction of the context as in the candidate.
        """
        return min(1.0, context / self.workloads[0].decode_context)
