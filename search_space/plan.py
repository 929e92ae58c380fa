"""How candidates are judged: the target, the workloads, the twin that is trained and for how long."""

from typing import Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from .document import Record, nearest
from .workload import WORKLOADS, Workload


class Proxy(Record):
    """Size of the trainable twin, see proxy.py."""

    d_model: PositiveInt = 64
    layers: PositiveInt = 4


class TextTask(Record):
    """A short training run on bytes of text; the answer is bits per byte on held-out text."""

    corpus: str | None = None  # a file or folder; by default Python's own library sources
    context: PositiveInt = 128
    batch: PositiveInt = 4
    steps: PositiveInt = 60
    learning_rate: float = Field(default=4e-3, gt=0)


class RecallTask(Record):
    """Multi-query associative recall: `pairs` keys with values, then asked for in another order."""

    pairs: PositiveInt = 5
    vocabulary: PositiveInt = 20
    context: PositiveInt = 20
    batch: PositiveInt = 24
    steps: PositiveInt = 100
    learning_rate: float = Field(default=5e-3, gt=0)

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
    """Everything besides the architecture that a candidate's numbers depend on.

    `workloads` are named ones of workload.py or points written out. `seeds` trainings are run of
    each task, with the same data order for every candidate; their mean is reported, their spread
    is its interval. A trial that runs longer than `trial_seconds` is recorded as hung.
    """

    target: str = "h200_sxm"
    workloads: tuple[Workload, ...] = Field(default=(WORKLOADS["chat-4k"],), min_length=1)
    proxy: Proxy = Proxy()
    text: TextTask = TextTask()
    recall: RecallTask = RecallTask()
    seeds: PositiveInt = 1
    trial_seconds: PositiveInt = 600

    @field_validator("workloads", mode="before")
    @classmethod
    def _by_name(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            return given
        if unknown := [w for w in given if isinstance(w, str) and w not in WORKLOADS]:
            raise ValueError(f"unknown workload {unknown[0]!r}{nearest(unknown[0], WORKLOADS)}")
        return [WORKLOADS[w] if isinstance(w, str) else w for w in given]

    def context_fraction(self, context: int) -> float:
        """A task's context over the first workload's: how far the twin's windows shrink."""
        return min(1.0, context / self.workloads[0].decode_context)
