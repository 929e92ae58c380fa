"""Runs of a study: Ray Tune runs the trials that the driver asks for."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ..search_space.document import InputError, nearest
from ..search_space.space import SearchSpace
from . import workers
from .driver import Driver, is_dead, objectives, this_process
from .progress import View
from .samplers.registry import SAMPLERS
from .searcher import StudySearcher
from .store import Store, Study

HEARTBEAT_S = 20
# A trial on a lost node runs again; a candidate's own faults are answers (workers.py).
MAX_NODE_FAILURES = 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a study is run: where, how many concurrent trials, for how long."""

    address: str | None = None  # of a Ray cluster; None starts a local one
    workers: int = 1
    gpus_per_trial: float = 0.0
    seconds: float | None = None


def create_study(
    store: Store,
    space: SearchSpace,
    *,
    name: str,
    target: str,
    trials: int,
    seed: int,
    sampler: str | None = None,
) -> Study:
    """Create a study of a space, which keeps the text of the file.

    `sampler` is a name of samplers/registry.py; the default is the space's. Raises InputError for
    an unknown one and for a study's name that is taken or malformed.
    """
    sampler = sampler or space.file.search.sampler
    if sampler not in SAMPLERS:
        raise InputError(f"unknown sampler {sampler!r}{nearest(sampler, SAMPLERS)}")
    return store.create_study(
        name=name,
        space_yaml=space.document.text,
        space_name=space.name,
        objectives=objectives(space),
        seed=seed,
        target=target,
        trials_wanted=trials,
        sampler=sampler,
    )


def run_study(
    store: Store,
    study: Study,
    space: SearchSpace,
    run: Run,
    view: View,
    *,
    trials: int | None = None,
    trainable: Callable[[dict[str, Any]], None] = workers.trial,
    scheduler: TrialScheduler | None = None,
) -> Study:
    """Run a study until its trials are done, its time is up, its space exhausted, or Ctrl-C.

    `trials` gives it a new total. Each trial's end is in the store before the next begins; a trial
    that is cut off runs again on resume. `scheduler` is Ray Tune's and sees every report of a rung;
    the default never stops a trial. Raises InputError when another driver holds the study or the
    cluster cannot be reached.
    """
    dead = study.owner if study.owner and is_dead(study.owner) else None
    store.claim(study.name, this_process(), dead=dead)
    try:
        if trials is not None:
            store.set_trials_wanted(study.name, trials)
            study = store.study(study.name)
        with _heartbeat(store, study.name), _cluster(run):
            driver = Driver(store, study, space, view)
            if driver.remaining:
                store.set_status(study.name, "running")
                _tune(driver, run, trainable, scheduler or FIFOScheduler())
            done = driver.remaining == 0 or driver.exhausted
            store.set_status(study.name, "finished" if done else "interrupted")
    finally:
        view.close()
        store.release(study.name)
    return store.study(study.name)


def _tune(
    driver: Driver,
    run: Run,
    trainable: Callable[[dict[str, Any]], None],
    scheduler: TrialScheduler,
) -> None:
    if run.seconds is not None:
        driver.deadline = time.monotonic() + run.seconds
    resources = {"cpu": 1.0, "gpu": run.gpus_per_trial}
    with tempfile.TemporaryDirectory(prefix="archfront-") as scratch:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(driver),
                scheduler=scheduler,
                num_samples=driver.remaining,
                max_concurrent_trials=run.workers,
                reuse_actors=True,
                time_budget_s=run.seconds,
            ),
            run_config=tune.RunConfig(
                name=driver.study.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_NODE_FAILURES),
            ),
        ).fit()


@contextmanager
def _cluster(run: Run) -> Iterator[None]:
    """A connection to the given cluster, or a local Ray of `run.workers` CPUs for this run."""
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",  # results are in the store, not in files
        TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
        TUNE_GLOBAL_CHECKPOINT_S="3600",  # resume is from the store
        TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="0",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",
    )
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = (
            {"address": run.address}
            if run.address
            else {"num_cpus": run.workers, "address": "local"}
        )
        try:
            ray.init(
                **where,
                include_dashboard=False if not run.address else None,
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            if not run.address:
                raise
            raise InputError(f"--address {run.address}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _heartbeat(store: Store, study: str) -> Iterator[None]:
    """Renew the claim on the study while long trials keep the driver from writing."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            store.claim(study, this_process())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
