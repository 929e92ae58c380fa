"""The commands of costs: profile an architecture, calibrate a device."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...store_url import DEFAULT_STORE
from .. import options
from ..output import print_result, write_text

if TYPE_CHECKING:
    from ....profilers.report import Failure, Report
    from ....search_space.architecture import Architecture
    from ....search_space.plan import Plan


def profile(
    architecture: options.Architecture,
    target: Annotated[
        str | None,
        typer.Option(
            help="GPU to estimate for, or several as 8xNAME (default: from the profile plan)"
        ),
    ] = None,
    workload: options.Workloads = None,
    context: options.Context = None,
    batch: options.Batch = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where the time goes, by layer and operator")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time each block on the local device")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="With --measure, time the complete model too")
    ] = False,
    device: options.Device = None,
    train: Annotated[
        bool | None,
        typer.Option(
            "--train/--no-train",
            help="Train the proxy model (default: for a file or a key if no cost option is given)",
        ),
    ] = None,
    study: options.OfStudy = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.Json = False,
) -> None:
    """Estimate or measure what an architecture costs on a GPU, and how well its proxy model learns.

    Published models are not trained unless --train is given.
    """
    from ....profilers.report import Failure, Report
    from ....profilers.static_metrics import static_metrics
    from ....search_space import published
    from ....search_space.document import InputError
    from .. import render, render_costs
    from ..resolve import resolve, timings_at, workloads_of

    config = resolve(architecture, store, study).config
    found, plan = config.architecture, config.profile
    workloads = workloads_of(plan, workload or (), context=context, batch=batch)
    plan = plan.model_copy(update={"workloads": workloads, "target": target or plan.target})
    if whole and not measure:
        raise InputError("--whole needs --measure")
    if measure:
        plan = _measure_here(store, found, plan, target, device, whole=whole)
    of_cost = measure or explain or workload or context or batch
    timings, at = timings_at(store, plan.target)
    try:
        known = static_metrics(found, plan, timings)
        passes = render_costs.explain(found, at, plan.workloads, timings) if explain else []
    except ValueError as error:
        raise InputError(f"{architecture}: {error}") from None
    answer = Report(key=found.key, measurements=known)
    if train if train is not None else not of_cost and not published.find(architecture):
        trained = _train(found, plan, config.seed)
        if isinstance(trained, Failure):
            print(
                f"{architecture}: {trained.kind} in stage {trained.stage}: {trained.reason}",
                file=sys.stderr,
            )
            raise typer.Exit(1)
        answer = trained.beside(known)
    fits = render_costs.fits(answer, at, plan.workloads)
    plain = {
        **answer.plain(),
        "architecture": found.plain(),
        "fits": [vars(fit) for fit in fits],
        **({"explain": [part.plain() for part in passes]} if explain else {}),
    }
    parts = [render.report(found, answer), render_costs.fits_text(fits, at)]
    if explain:
        parts.append(render_costs.explanation(found, at, plan.workloads, passes))
    print_result(plain, render.stacked(*parts), as_json=as_json, schema_version=2 if explain else 1)


def calibrate(
    device: options.Device = None,
    points: Annotated[int, typer.Option(help="Points to time per operator class: 30 or 100")] = 30,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the timings to this file too (JSON)"),
    ] = None,
    given: Annotated[
        Path | None, typer.Option("--from", help="Import the timings of this file instead (JSON)")
    ] = None,
    force: options.Force = False,
    store: options.Store = DEFAULT_STORE,
    as_json: options.Json = False,
) -> None:
    """Time operators on the local device; all later estimates for it use the timings."""
    import torch

    from ....profilers.timing.calibrate import POINTS, calibrate
    from ....profilers.timing.calibration import Calibration
    from ....search_space.document import InputError, read_text
    from ...measuring import keep
    from ...progress import counting
    from ...store import open_store
    from .. import render_costs

    if points not in POINTS:
        raise InputError(f"--points is 30 or 100, got {points}")
    if given is not None:
        found = Calibration.from_text(read_text(given, "JSON"), source=str(given))
    else:
        torch.set_num_threads(1)
        with counting(as_json=as_json) as report:
            found, warnings = calibrate(device or _local_device(), points, report=report)
        for warning in warnings:
            print(warning, file=sys.stderr)
    with open_store(store) as opened:
        keep(opened, found)
    if output is not None:
        write_text(json.dumps(found.plain()), output, force=force)
    summary = render_costs.calibration_summary(found)
    plain = {"device": found.device.name, "classes": summary}
    table = render_costs.calibration_table(found, summary)
    print_result(plain, table, as_json=as_json, schema_version=2)


def _measure_here(
    store: str,
    architecture: "Architecture",
    plan: "Plan",
    target: str | None,
    device: str | None,
    *,
    whole: bool,
) -> "Plan":
    """Time the blocks on the local device; returns the plan with that device as its target."""
    import torch

    from ....profilers.local_device import local_device
    from ....profilers.timing.worker import facts
    from ....search_space.document import InputError
    from ...measuring import measure_blocks
    from ...store import open_store

    where = device or _local_device()
    here, warnings = local_device(where)
    if target not in (None, here.name):
        raise InputError(f"--measure times the local device, {here.name}, but --target is {target}")
    torch.set_num_threads(1)
    report = partial(print, file=sys.stderr)
    for warning in warnings:
        report(warning)
    with open_store(store) as opened:
        failures, compositions = measure_blocks(
            opened,
            architecture,
            plan.workloads,
            where=where,
            here=here,
            software=facts(torch.device(where)),
            whole=whole,
            report=report,
        )
    for failure in failures:
        report(f"{failure.stage}: {failure.kind}: {failure.reason}")
    for one in compositions:
        report(
            f"{one.workload} {one.what}: sum of the blocks {1e3 * one.units_s:.4g} ms, whole "
            f"model {1e3 * one.whole_s:.4g} ms, composition error {one.error:+.1%}"
        )
    return plan.model_copy(update={"target": here.name})


def _train(architecture: "Architecture", plan: "Plan", seed: int) -> "Report | Failure":
    """Train the proxy model as a trial of a search does; the last report, or a failure."""
    import torch

    from ....profilers.profile import profile

    torch.set_num_threads(1)  # as in a search: the result depends on it
    *_, last = profile(architecture, plan, seed=seed)
    return last


def _local_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
