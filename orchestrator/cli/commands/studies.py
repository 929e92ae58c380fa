"""The commands of studies and their candidates: search, resume, and what a store holds."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...store_url import DEFAULT_STORE, store_option
from .. import options
from ..output import print_result

if TYPE_CHECKING:
    from ....search_space.space import SearchSpace
    from ...search import Run
    from ...store import Store, Study

MAX_SEED = 2**32 - 1  # of NumPy's generators
MAX_TRIALS = 1_000_000


def search(
    space: options.SpaceFile,
    target: Annotated[
        str | None, typer.Option(help="GPU to search for (default: from the space file)")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, max=MAX_TRIALS, help="Trials to complete")] = 50,
    seconds: options.Seconds = None,
    store: options.Store = DEFAULT_STORE,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, help="Seed of sampling, data order and initial weights"),
    ] = 0,
    sampler: options.Sampler = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study (default: SPACE-N, N = 1, 2, ...)")
    ] = None,
    address: options.Address = None,
    workers: options.Workers = None,
    gpus: options.Gpus = 0.0,
    as_json: options.Json = False,
) -> None:
    """Search a space for the Pareto front of its objectives; finished trials are always kept."""
    from ....profilers.cluster import cluster
    from ....profilers.corpus import load_corpus
    from ....search_space.check import load_space
    from ...search import create_study
    from ...store import open_store
    from ..resolve import free_study_name

    checked = load_space(space).for_target(target)
    cluster(checked.plan.target)
    load_corpus(checked.plan.text.corpus).require(checked.plan.text.context)
    with open_store(store) as opened:
        study = create_study(
            opened,
            checked,
            name=name or free_study_name(opened, checked.name),
            target=checked.plan.target,
            trials=trials,
            seed=seed,
            sampler=sampler,
        )
        run = _run_settings(address, workers, gpus, seconds)
        _run(opened, study, checked, store, run, as_json=as_json)


def resume(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study")],
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_TRIALS, help="New total of trials to complete (default: unchanged)"
        ),
    ] = None,
    seconds: options.Seconds = None,
    store: options.Store = DEFAULT_STORE,
    address: options.Address = None,
    workers: options.Workers = None,
    gpus: options.Gpus = 0.0,
    as_json: options.Json = False,
) -> None:
    """Continue an interrupted study, or extend a finished one with --trials."""
    from ....search_space.check import check_space
    from ....search_space.document import parse_document
    from ...store import open_store

    run = _run_settings(address, workers, gpus, seconds)
    with open_store(store, create=False) as opened:
        known = opened.study(study)
        space = check_space(parse_document(known.space_yaml, source=f"study {study}"))
        space = space.for_target(known.target)
        _run(opened, known, space, store, run, trials=trials, as_json=as_json)


def studies(store: options.Store = DEFAULT_STORE, as_json: options.Json = False) -> None:
    """List the studies of a store."""
    from .. import render
    from ..resolve import open_existing

    with open_existing(store) as opened:
        found = opened.studies()
    plain = {"studies": [render.plain_study(study) for study in found]}
    print_result(plain, render.studies(found), as_json=as_json)


def front(
    study: Annotated[
        str | None, typer.Argument(metavar="STUDY", help="Name of the study (default: the newest)")
    ] = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.Json = False,
) -> None:
    """Show the Pareto front of a study, each value with its provenance."""
    from ..resolve import newest_study, open_existing

    with open_existing(store) as opened:
        found = opened.study(study) if study else newest_study(opened)
        if not _print_front(opened, found, as_json=as_json):
            raise typer.Exit(3)


def show(
    key: options.Key,
    study: options.OfStudy = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.Json = False,
) -> None:
    """Show one architecture of a study: its blocks, and its metrics with their provenance."""
    from ...export import best_known
    from .. import render
    from ..resolve import open_existing, report_choice

    with open_existing(store) as opened:
        trial, report = best_known(opened, key, study)
        architecture = opened.architecture(key)
        report_choice(opened, trial, study)
    plain = {"architecture": architecture.plain(), "trial": trial.number, "study": trial.study}
    table = render.candidate(architecture, trial, report)
    print_result({**report.plain(), **plain}, table, as_json=as_json)


def compare(
    architectures: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHITECTURE...",
            help="Architecture files (YAML), names of published models, or keys in the store",
        ),
    ],
    context: options.Context = None,
    batch: options.Batch = None,
    target: Annotated[
        str | None, typer.Option(help="GPU to compare on (default: each architecture's own)")
    ] = None,
    study: options.OfStudy = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.Json = False,
) -> None:
    """Compare architectures side by side: the fields that differ, and all metrics.

    With --context or --batch, costs are estimated at that point instead of the default workload.
    """
    from .. import render
    from ..resolve import column, resolve, timings_at

    found = [resolve(name, store, study) for name in architectures]
    targets = {target or one.config.profile.target for one in found}
    timings = {at: timings_at(store, at)[0] for at in targets}
    columns = [
        column(one, target=target, context=context, batch=batch, timings=timings) for one in found
    ]
    plain = {"architectures": [c.plain() for c in columns]}
    print_result(plain, render.compare(columns), as_json=as_json)


def export(
    key: options.Key,
    output: Annotated[Path, typer.Option("--output", "-o", help="Output file (YAML)")],
    study: options.OfStudy = None,
    force: options.Force = False,
    store: options.Store = DEFAULT_STORE,
) -> None:
    """Write an architecture with its profile plan to a file that `archfront profile` reads."""
    from ...export import as_yaml, best_known, exported, write_new
    from ..resolve import open_existing, report_choice

    with open_existing(store) as opened:
        trial, _ = best_known(opened, key, study)
        report_choice(opened, trial, study)
        config = exported(opened, key, study)
    write_new(output, as_yaml(config), force=force)
    print(f"wrote {output}: {config.key} {config.architecture.pattern}")
    print(f"from trial {trial.number} of {trial.study}, target {config.profile.target}")
    print(f"next:  archfront profile {output}")


def _run_settings(
    address: str | None, workers: int | None, gpus: float, seconds: float | None
) -> "Run":
    from ...search import Run

    concurrent = workers or os.cpu_count() or 1
    return Run(address=address, workers=concurrent, gpus_per_trial=gpus, seconds=seconds)


def _run(
    store: "Store",
    study: "Study",
    space: "SearchSpace",
    url: str,
    run: "Run",
    *,
    trials: int | None = None,
    as_json: bool,
) -> None:
    """Run a study, print its front and the next commands; exit 130 if it was interrupted."""
    from ...progress import view
    from ...search import run_study

    ended = run_study(store, study, space, run, view(as_json=as_json), trials=trials)
    found = _print_front(store, ended, as_json=as_json)
    if not as_json:
        _print_next(store, ended, url)
    if ended.status == "interrupted":
        print(
            "stopped early, finished trials are kept: "
            f"archfront resume {ended.name}{store_option(url)}",
            file=sys.stderr,
        )
        raise typer.Exit(0 if run.seconds is not None else 130)
    if not found:
        raise typer.Exit(3)


def _print_front(store: "Store", study: "Study", *, as_json: bool) -> bool:
    """Print the front of a study; False if it is empty."""
    from ...queries import front_entries
    from .. import render

    entries = front_entries(store, study)
    steps = store.hypervolume_history(study.name)
    plain, table = render.plain_front(study, entries, steps), render.front(study, entries, steps)
    print_result(plain, table, as_json=as_json)
    return bool(entries)


def _print_next(store: "Store", study: "Study", url: str) -> None:
    """Print the commands to type after a search."""
    from ...queries import knee_index

    at = store_option(url)
    more = f"archfront resume {study.name} --trials {2 * study.trials_wanted}{at}"
    best = store.front(study.name)
    if not best:
        print(f"next:  {more}")
        return
    key = best[knee_index(study, best)].key
    assert key is not None, "a trial on the front has an architecture"
    several = len({trial.study for trial in store.trials_of(key)}) > 1
    where = (f" --study {study.name}" if several else "") + at
    print(f"\nnext:  archfront show {key}{where}")
    print(f"       archfront export {key} -o chosen.yaml{where}")
    print(f"       archfront dashboard{at}")
    print(f"       {more}")
