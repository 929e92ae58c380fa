"""Ray Tune's searcher for a study: passes tasks to Tune and its events to the driver.

Why not Ray's OptunaSearch: with several objectives a NaN, a missing metric or a silent return
leaves its Optuna trial running forever, one missing metric aborts the whole run, and it knows
neither constraints nor a warm start with values.
"""

import json
from typing import Any

from ray.tune.search import Searcher

from ..search_space.metrics import MetricRef
from .driver import Driver
from .workers import ANSWER, REPORT, TASK


class StudySearcher(Searcher):
    """Tune calls `suggest` for each trial it has room for, and an event for each result and end.

    Tasks and answers cross as one JSON text each: Tune would flatten anything nested. An event for
    a trial that has ended, or that this searcher did not suggest, has no effect.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric=None, mode=None)
        self.driver = driver
        self.numbers: dict[str, int] = {}
        self.common = {
            "plan": driver.space.plan.model_dump(mode="json"),
            "seed": driver.study.seed,
            "metrics": sorted({MetricRef.parse(label).name for label in driver.needed}),
        }

    def suggest(self, trial_id: str) -> Any:
        """A task for the trial, or FINISHED where the space has nothing new."""
        candidate = self.driver.next_trial()
        if candidate is None:
            return Searcher.FINISHED
        self.numbers[trial_id] = candidate.number
        task = {
            "number": candidate.number,
            "key": candidate.architecture.key,
            "architecture": candidate.architecture.plain(),
        }
        return {TASK: json.dumps(task | self.common)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Give the driver the report of a rung that is not the last."""
        answer = _answer(result, REPORT)
        if answer is not None and trial_id in self.numbers:
            self.driver.report(self.numbers[trial_id], answer)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Give the driver the trial's answer, or that there is none."""
        number = self.numbers.pop(trial_id, None)
        if number is not None:
            self.driver.finish(number, _answer(result, ANSWER), lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a study is resumed from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Take nothing from a Tune checkpoint: a study is resumed from the store."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher; the driver and its database stay in this process."""
        return {"numbers": self.numbers}


def _answer(result: dict[str, Any] | None, kind: str) -> dict[str, Any] | None:
    text = (result or {}).get(kind)
    return json.loads(text) if isinstance(text, str) else None
