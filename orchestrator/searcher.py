"""Between Ray Tune and the driver: Tune asks for configurations and brings results.

Why not Ray's OptunaSearch: with several objectives a NaN, a missing metric or a silent return
leaves its Optuna trial running for ever, one missing metric aborts the whole run, and it knows
neither constraints nor a warm start with values.
"""

import json
from typing import Any

from ray.tune.search import Searcher

from .driver import Driver
from .workers import ANSWER, TASK


class StudySearcher(Searcher):
    """Tune calls `suggest` for each trial it has room for, and `on_trial_complete` for each end.

    Tasks and answers cross as one JSON text each: Tune would flatten anything nested.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric=None, mode=None)
        self.driver = driver
        self.numbers: dict[str, int] = {}
        self.common = {"plan": driver.space.plan.model_dump(mode="json"), "seed": driver.study.seed}

    def suggest(self, trial_id: str) -> Any:
        """A configuration, or that there is none any more."""
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
        """A trial reports once; its answer is read when it completes."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Give the driver the trial's answer, or that there is none."""
        text = (result or {}).get(ANSWER)
        answer = json.loads(text) if isinstance(text, str) else None
        self.driver.finish(self.numbers.pop(trial_id), answer, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept here: the store is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Studies are resumed from the store, never from a Tune checkpoint."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher; the driver and its database stay in this process."""
        return {"numbers": self.numbers}
