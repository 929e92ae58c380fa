"""Overhead of a search per trial: 200 empty trials, beside a bare Ray Tune run.

The bare run is Ray Tune as it comes, with an empty trainable, reused actors and random sampling.
Ours adds Optuna, the space with its budget, and a committed row at each begin and end, and leaves
out Tune's own log files. Both run in one process on one local Ray, in turn; the median ratio of
their times is the result (goal: at most 1.3).
"""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

import ray
from ray import tune

from archfront.orchestrator import workers
from archfront.orchestrator.search import Run, create_study, run_study
from archfront.orchestrator.store import open_store
from archfront.profilers.report import Measurement, Report
from archfront.search_space.accounting import cache_bytes_at, parameters
from archfront.search_space.architecture import Architecture
from archfront.search_space.check import load_space

TRIALS, ROUNDS, WORKERS = 200, 3, 2
GOAL = 1.3
SPACE = Path(__file__).parents[1] / "examples" / "tiny.yaml"


def empty(config: dict[str, Any]) -> None:
    """A profile that does nothing: stand-ins for what a training finds, noise included."""
    task = json.loads(config[workers.TASK])
    architecture = Architecture.model_validate(task["architecture"])
    attention = sum(symbol in "*WL" for symbol in architecture.symbols) / architecture.num_layers
    noise = [int(task["key"][i : i + 3], 16) / 4096 for i in (0, 3)]
    values = {
        "bits_per_byte": 3.0 - 0.01 * math.log(parameters(architecture).total) + 0.1 * noise[0],
        "recall": 0.8 * attention**0.5 + 0.2 * noise[1],
        "decode_ms": 1e-9 * cache_bytes_at(architecture, 4096),
        "memory_gib": 1e-9 * parameters(architecture).total,
    }
    measurements = tuple(Measurement.counted(name, value) for name, value in values.items())
    workers.report(Report(key=task["key"], measurements=measurements).plain())


def bare(config: dict[str, Any]) -> None:
    """The empty trainable of the bare run."""
    tune.report({"x": config["x"]})


def run_bare() -> float:
    """Seconds of a bare Ray Tune run."""
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)  # ours sets it
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tune.Tuner(
            tune.with_resources(bare, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                num_samples=TRIALS, max_concurrent_trials=WORKERS, reuse_actors=True
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        return time.perf_counter() - start


class Silent:
    """A view that shows nothing."""

    def show(self, state: object) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is open."""


def run_ours(seed: int) -> float:
    """Seconds of one of our studies over the same empty trials."""
    space = load_space(SPACE)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(f"sqlite:///{folder}/store.db") as store,
    ):
        study = create_study(
            store, space, name="bench", target="h200_sxm", trials=TRIALS, seed=seed
        )
        start = time.perf_counter()
        ended = run_study(store, study, space, Run(workers=WORKERS), Silent(), trainable=empty)
        seconds = time.perf_counter() - start
    assert ended.counts["complete"] == TRIALS, ended.counts
    return seconds


def main() -> int:
    """Print both times per round and the median ratio; 1 where it is above the goal."""
    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="error", log_to_driver=False)
    rounds = []
    run_bare()
    for index in range(ROUNDS):
        ours, plain = run_ours(index), run_bare()
        rounds.append(ours / plain)
        print(
            f"round {index + 1}: ours {1e3 * ours / TRIALS:.0f} ms per trial, "
            f"bare Ray Tune {1e3 * plain / TRIALS:.0f} ms, ratio {ours / plain:.2f}",
            flush=True,
        )
    ratio = statistics.median(rounds)
    print(
        json.dumps({"trials": TRIALS, "workers": WORKERS, "ratio": round(ratio, 3), "goal": GOAL})
    )
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
