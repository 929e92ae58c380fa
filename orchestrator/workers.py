"""One trial on a Ray worker, from plain data to plain data.

Every fault of a candidate becomes its answer. A candidate that kills its process (or hangs, and is
killed) leaves a mark: the next attempt on that node reports it and does not retry. A node that is
lost leaves no mark on another one, and the trial runs again.
"""

import json
import os
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ..profilers.report import Failure, Report
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan

# Added to the plan's own time limit, at which a slow training ends as a failure of its own.
GRACE_S, GRACE_FRACTION = 5, 0.1
TASK = "task"
REPORT, ANSWER = "report", "answer"  # of a rung that is not the last; of the trial
# Of an architecture under a plan, with a seed, for the metrics named: a report per rung, in order.
Profile = Callable[[Architecture, Plan, int, Collection[str]], Iterator[Report | Failure]]


def trial(config: dict[str, Any]) -> None:
    """Ray Tune's function trainable: profile the task's architecture and report at each rung."""
    attempt(config, _profile)


def _profile(
    architecture: Architecture, plan: Plan, seed: int, metrics: Collection[str]
) -> Iterator[Report | Failure]:
    from ..profilers.profile import profile  # torch loads on the worker, not in the driver

    return profile(architecture, plan, seed=seed, metrics=metrics)


def attempt(config: dict[str, Any], profile: Profile) -> None:
    """Run `profile` on a task such that every way to end, its own death included, is an answer.

    A report of the last rung, or a failure, is the trial's answer; what `profile` would yield after
    it is not requested.
    """
    task = json.loads(config[TASK])
    architecture = Architecture.model_validate(task["architecture"])
    plan = Plan.model_validate(task["plan"])
    mark = Path(tune.get_context().get_trial_dir() or ".") / "attempt.json"
    if earlier := _earlier_attempt(mark):
        report(_died(architecture.key, earlier))
        return
    _write(mark, "crash")
    limit = plan.trial_seconds * (1 + GRACE_FRACTION) + GRACE_S
    watchdog = threading.Timer(limit, _kill, (mark,))
    watchdog.daemon = True
    watchdog.start()
    try:
        for found in profile(architecture, plan, task["seed"], task["metrics"]):
            final = isinstance(found, Failure) or found.rung == len(plan.rungs) - 1
            report(found.plain(), final=final)
            if final:
                break
    except Exception as fault:  # noqa: BLE001 - here a program error becomes an answer
        report(_failed(architecture.key, fault))
    finally:
        watchdog.cancel()
        mark.unlink(missing_ok=True)


def report(answer: dict[str, Any], *, final: bool = True) -> None:
    """Send the driver the answer of this trial, or (not `final`) the report of an earlier rung."""
    tune.report({ANSWER if final else REPORT: json.dumps(answer)})


def _failed(key: str, fault: Exception) -> dict[str, Any]:
    """An exception as an answer: its type, its first line and where it was raised."""
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    text = str(fault).splitlines()[0] if str(fault) else ""
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    reason = f"{type(fault).__name__}: {text} ({where})"
    return Failure(key=key, stage="profile", kind="error", reason=reason).plain()


def _died(key: str, kind: str) -> dict[str, Any]:
    """The answer for a candidate whose earlier attempt did not come back."""
    reasons = {
        "crash": "the worker process died under this candidate",
        "hang": "the time limit passed without an answer, the worker was killed",
    }
    return Failure(
        key=key, stage="profile", kind="hang" if kind == "hang" else "crash", reason=reasons[kind]
    ).plain()


def _write(mark: Path, kind: str) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"kind": kind, "node": ray.get_runtime_context().get_node_id()}))


def _earlier_attempt(mark: Path) -> str | None:
    """How an earlier attempt of this trial ended on this node; None where there was none."""
    if not mark.exists():
        return None
    earlier = json.loads(mark.read_text())
    return earlier["kind"] if earlier["node"] == ray.get_runtime_context().get_node_id() else None


def _kill(mark: Path) -> None:
    _write(mark, "hang")
    os._exit(1)
