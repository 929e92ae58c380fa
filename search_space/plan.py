"""How candidates are judged: the target, the workloads, the twin that is trained and for how long."""

from typing import Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from .document import Record, nearest
from .workload import WORKLOADS, Workload

MAX_PROXY_WIDTH, MAX_PROXY_LAYERS = 8192, 256  # beyond what trains in seconds


class Proxy(Record):
    """Size of the proxy model that is trained, see proxy.py."""

    d_model: int = Field(default=64, ge=1, le=MAX_PROXY_WIDTH)
    """Width of the residual stream."""
    layers: int = Field(default=4, ge=1, le=MAX_PROXY_LAYERS)
    """Layers; at least one for each kind of layer."""


class TextTask(Record):
    """A short training run on bytes of text, measured in bits per byte on held-out text."""

    corpus: str | None = None
    """A file or folder of text; null: the sources of Python's standard library."""
    context: PositiveInt = 128
    """Tokens per sequence."""
    batch: PositiveInt = 4
    """Sequences per step."""
    steps: PositiveInt = 60
    """Training steps."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate of AdamW."""


class RecallTask(Record):
    """Multi-query associative recall: keys with values, then queried in another order."""

    pairs: PositiveInt = 5
    """Key-value pairs per sequence."""
    vocabulary: PositiveInt = 20
    """Distinct tokens."""
    context: PositiveInt = 20
    """Tokens per sequence."""
    batch: PositiveInt = 24
    """Sequences per step."""
    steps: PositiveInt = 100
    """Training steps."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Peak learning rate of AdamW."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.context < 4 * self.pairs:
            raise ValueError(
                f"context must hold every pair and every query, 4 * pairs, got context={self.context}, pairs={self.pairs}"
            )
        if self.vocabulary < 4 * self.pairs:
            raise ValueError(
                f"vocabulary must be at least 4 * pairs, got vocabulary={self.vocabulary}, pairs={self.pairs}"
            )
        return self


class Plan(Record):
    """Everything besides the architecture that a candidate's numbers depend on."""

    target: str = "h200_sxm"
    """Device that latency and memory are estimated for."""
    workloads: tuple[Workload, ...] = Field(default=(WORKLOADS["chat-4k"],), min_length=1)
    """Points at which latency and memory are estimated: names, or workloads written out."""
    proxy: Proxy = Proxy()
    """Size of the proxy model that is trained."""
    text: TextTask = TextTask()
    """Training run on text."""
    recall: RecallTask = RecallTask()
    """Training run on associative recall."""
    seeds: PositiveInt = 1
    """Trainings per task, with the same data order for every candidate; their mean is reported."""
    trial_seconds: PositiveInt = 600
    """Seconds after which a trial is recorded as hung."""

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

    def context_fraction(self, context: int) -> float:
        """A task's context over the first workload's: how far the twin's windows shrink."""
        return min(1.0, context / self.workloads[0].decode_context)
