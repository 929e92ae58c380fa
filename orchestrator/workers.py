"""What runs on a Ray worker: one trial, from plain data to plain data.

Every fault of a candidate becomes its answer. A candidate that kills its process (or hangs, and is
killed) is known by the mark it left: the next attempt on that node reports it and does not retry.
A node that is lost leaves no mark on another one, and the trial runs again.
"""

import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ..profilers.report import Failure, Report
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan

# Beyond the plan's own limit, which ends a slow training in good order.
GRACE_S, GRACE_SHARE = 5, 0.1
TASK, ANSWER = "task", "answer"
Profile = Callable[[Architecture, Plan, int], Iterator[Report | Failure]]


def trial(config: dict[str, Any]) -> None:
    """Ray Tune's function trainable: profile the task's architecture, report the answer once."""
    attempt(config, _profile)


def _profile(architecture: Architecture, plan: Plan, seed: int) -> Iterator[Report | Failure]:
    from ..profilers.profile import profile  # torch loads on the worker, not in the driver

    return profile(architecture, plan, seed=seed)


def attempt(config: dict[str, Any], profile: Profile) -> None:
    """Run `profile` on a task such that every way to end, its own death included, is an answer."""
    task = json.loads(config[TASK])
    architecture = Architecture.model_validate(task["architecture"])
    plan = Plan.model_validate(task["plan"])
    mark = Path(tune.get_context().get_trial_dir() or ".") / "attempt.json"
    if earlier := _earlier_attempt(mark):
        report(_died(architecture.key, earlier))
        return
    _write(mark, "crash")
    limit = plan.trial_seconds * (1 + GRACE_SHARE) + GRACE_S
    watchdog = threading.Timer(limit, _kill, (mark,))
    watchdog.daemon = True
    watchdog.start()
    try:
        for answer in profile(architecture, plan, task["seed"]):
            report(answer.plain())
    except Exception as fault:  # noqa: BLE001 - the one place where a program error becomes an answer
        report(_failed(architecture.key, fault))
    finally:
        watchdog.cancel()
        mark.unlink(missing_ok=True)


def report(answer: dict[str, Any]) -> None:
    """Hand the driver the answer of this trial."""
    tune.report({ANSWER: json.dumps(answer)})


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
