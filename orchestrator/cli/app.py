"""The command line: results on stdout, progress and complaints on stderr.

Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 no candidate is left, 130 interrupted with
everything finished kept. Heavy imports wait until a command needs them: `--version` takes 0.2 s.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ...profilers.cluster import Cluster
    from ...profilers.pricing import TargetTimings
    from ...profilers.report import Failure, Report
    from ...search_space.accounting import StateFormat
    from ...search_space.architecture import Architecture
    from ...search_space.operators import NumberFormat
    from ...search_space.plan import Plan
    from ...search_space.space import SearchSpace
    from ..search import Run
    from ..store import Store, Study
    from .atlas import View

DEFAULT_STORE = "sqlite:///archfront.db"

app = typer.Typer(
    name="archfront",
    help="Hardware-aware architecture search for hybrid language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
space_app = typer.Typer(help="Search spaces.", no_args_is_help=True)
app.add_typer(space_app, name="space")
atlas_app = typer.Typer(help="Published architectures.", no_args_is_help=True)
app.add_typer(atlas_app, name="atlas")

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="ARCHFRONT_STORE", help="sqlite:///FILE or postgresql://USER@HOST/DB"
    ),
]
SecondsOption = Annotated[float | None, typer.Option(min=1, help="Stop after this long.")]
AddressOption = Annotated[
    str | None, typer.Option(help="A Ray cluster, or 'auto'. Default: local.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Trials at once; default: a CPU each.")
]
GpusOption = Annotated[float, typer.Option(min=0, help="GPUs a trial takes, parts allowed.")]
ContextOption = Annotated[
    int | None, typer.Option(min=1, max=1_000_000_000, help="Tokens that a sequence holds.")
]
BatchOption = Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Sequences at once.")]
WorkloadOption = Annotated[
    list[str] | None, typer.Option(help="A named point, repeatable; default: the file's.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="The one that is here: cpu or cuda:N; default: a GPU if any.")
]
KvOption = Annotated[
    Literal["bf16", "fp8", "int8"] | None,
    typer.Option(help="Of keys and values; default: as planned."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write; default: stdout.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the file.")]
StateOption = Annotated[Literal["fp32", "bf16"], typer.Option(help="Of recurrent states.")]
MtpOption = Annotated[bool, typer.Option("--mtp", help="Count the MTP modules too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document, for machines.")]


def main() -> NoReturn:
    """The console script. Bad input is one line on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        from ...search_space.document import InputError

        if not isinstance(error, InputError):
            raise
        print(error, file=sys.stderr)
        sys.exit(2)
    raise AssertionError("the app exits by itself")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"archfront {installed('archfront')}")
        raise typer.Exit


@app.command()
def search(
    space: Annotated[Path, typer.Argument(help="The space: a YAML file.", show_default=False)],
    target: Annotated[
        str | None, typer.Option(help="GPU to search for; default: the space's.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials to finish.")] = 50,
    seconds: SecondsOption = None,
    store: StoreOption = DEFAULT_STORE,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, data order and weights.")] = 0,
    name: Annotated[str | None, typer.Option(help="Of the study; default: SPACE-N.")] = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    gpus: GpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Search a space; finished trials are kept whatever happens."""
    from ...profilers.cluster import cluster
    from ...profilers.corpus import load_corpus
    from ...search_space.check import load_space
    from ..search import create_study
    from ..store import open_store

    checked = load_space(space).for_target(target)
    cluster(checked.plan.target)
    load_corpus(checked.plan.text.corpus).require(checked.plan.text.context)
    with open_store(store) as opened:
        study = create_study(
            opened,
            checked,
            name=name or _free_name(opened, checked.name),
            target=checked.plan.target,
            trials=trials,
            seed=seed,
        )
        _run(opened, study, checked, store, _how(address, workers, gpus, seconds), as_json=as_json)


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="New total of trials to finish.")
    ] = None,
    seconds: SecondsOption = None,
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    workers: WorkersOption = None,
    gpus: GpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Go on with a study that was cut off, or give a finished one more trials."""
    from ...search_space.check import check_space
    from ...search_space.document import parse_document
    from ..store import open_store

    with _existing(store) as found, open_store(store) as opened:
        known = found.study(study)
        space = check_space(parse_document(known.space_yaml, source=f"study {study}"))
        how = _how(address, workers, gpus, seconds)
        space = space.for_target(known.target)
        _run(opened, known, space, store, how, trials=trials, as_json=as_json)


@app.command()
def studies(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the studies of a store."""
    from . import render as text

    with _existing(store) as opened:
        found = opened.studies()
    _out({"studies": [text.plain_study(study) for study in found]}, as_json, text.studies(found))


@app.command()
def front(
    study: Annotated[str | None, typer.Argument(help="Default: the newest.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """The Pareto front of a study, each number with where it comes from."""
    from . import render as text

    with _existing(store) as opened:
        found = opened.study(study) if study else _newest(opened)
        entries = text.front_entries(opened, found)
        steps = opened.hypervolume_history(found.name)
    _out(text.plain_front(found, entries, steps), as_json, text.front(found, entries, steps))
    if not entries:
        raise typer.Exit(3)


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="An architecture's key, or the start of it.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """One architecture: its layers, its numbers, where they come from."""
    from ..export import best_known
    from . import render as text

    with _existing(store) as opened:
        architecture = opened.architecture(key)
        trial, report = best_known(opened, key)
    plain = {"architecture": architecture.plain(), "trial": trial.number, "study": trial.study}
    _out({**report.plain(), **plain}, as_json, text.candidate(architecture, trial, report))


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="Keys, published models, YAML files.")],
    context: ContextOption = None,
    batch: BatchOption = None,
    target: Annotated[str | None, typer.Option(help="GPU; default: each one's own.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Architectures side by side: what differs, and every number that two of them share.

    With --context or --batch, costs are estimated at that point instead of the default workload.
    """
    from . import render as text
    from .resolve import column, named

    found = [named(name, lambda: _existing(store)) for name in names]
    known = {
        at: _learnt(store, at)[0] for one in found for at in [target or one.config.profile.target]
    }
    columns = [
        column(one, target=target, context=context, batch=batch, timings=known) for one in found
    ]
    _out({"architectures": [c.plain() for c in columns]}, as_json, text.compare(columns))


@app.command()
def export(
    key: Annotated[str, typer.Argument(help="An architecture's key, or the start of it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    force: ForceOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write the chosen config: it builds, trains and profiles again from the file alone."""
    from ..export import as_yaml, exported, write_new

    with _existing(store) as opened:
        config = exported(opened, key)
    write_new(output, as_yaml(config), force=force)
    print(f"wrote {output}: {config.key} {config.architecture.pattern}")
    print(f"next:  archfront profile {output}")


@app.command()
def profile(
    name: Annotated[str, typer.Argument(help="A YAML file, a key, or a published model.")],
    target: Annotated[
        str | None, typer.Option(help="GPU, or several as 8xNAME; default: the file's.")
    ] = None,
    workload: WorkloadOption = None,
    context: ContextOption = None,
    batch: BatchOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Where the time goes.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time each block on the device that is here.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="With --measure: the complete model too.")
    ] = False,
    device: DeviceOption = None,
    train: Annotated[
        bool | None,
        typer.Option(
            "--train/--no-train",
            help="The twin; default: for a file or a key without any option of cost.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """What an architecture costs on a target; of a file or a key also how well its twin learns."""
    from ...profilers.report import Failure, Report
    from ...profilers.static_metrics import static_metrics
    from ...search_space import published
    from ...search_space.document import InputError
    from . import costs
    from . import render as text
    from .resolve import named, workloads_of

    config = named(name, lambda: _existing(store)).config
    architecture, plan = config.architecture, config.profile
    workloads = workloads_of(plan, workload or (), context=context, batch=batch)
    plan = plan.model_copy(update={"workloads": workloads, "target": target or plan.target})
    if whole and not measure:
        raise InputError("--whole is part of --measure")
    if measure:
        plan = _measured_here(store, architecture, plan, target, device, whole=whole)
    costly = measure or explain or workload or context or batch
    timings, at = _learnt(store, plan.target)
    try:
        known = static_metrics(architecture, plan, timings)
        passes = costs.explained(architecture, at, plan.workloads, timings) if explain else []
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    answer = Report(key=architecture.key, measurements=known)
    if train if train is not None else not costly and not published.find(name):
        trained = _trained(architecture, plan, config.seed)
        if isinstance(trained, Failure):
            print(
                f"{name}: {trained.kind} in stage {trained.stage}: {trained.reason}",
                file=sys.stderr,
            )
            raise typer.Exit(1)
        answer = trained.beside(known)
    fits = costs.fits(answer, at, plan.workloads)
    plain = {
        **answer.plain(),
        "architecture": architecture.plain(),
        "fits": [vars(fit) for fit in fits],
        **({"explain": [part.plain() for part in passes]} if explain else {}),
    }
    parts = [text.report(architecture, answer), costs.fits_text(fits, at)]
    if explain:
        parts.append(costs.explanation(architecture, at, plan.workloads, passes))
    _out(plain, as_json, text.together(*parts))


@app.command()
def calibrate(
    device: DeviceOption = None,
    points: Annotated[int, typer.Option(help="Of each class of operators: 30 or 100.")] = 30,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the timings to this file too.")
    ] = None,
    given: Annotated[
        Path | None, typer.Option("--from", help="Keep this file's timings instead of timing.")
    ] = None,
    force: ForceOption = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Time operators on the device that is here, for every later estimate of it."""
    import torch

    from ...profilers.timing.calibrate import POINTS, calibrate
    from ...profilers.timing.calibration import Calibration
    from ...search_space.document import InputError, read_text
    from ..measuring import keep
    from ..progress import counting
    from ..store import open_store
    from . import costs

    if points not in POINTS:
        raise InputError(f"--points is 30 or 100, got {points}")
    if given is not None:
        found = Calibration.from_text(read_text(given, "JSON"), source=str(given))
    else:
        torch.set_num_threads(1)
        with counting(as_json=as_json) as tell:
            found, warnings = calibrate(device or _local_device(), points, report=tell)
        for warning in warnings:
            print(warning, file=sys.stderr)
    with open_store(store) as opened:
        keep(opened, found)
    if output is not None:
        _write(json.dumps(found.plain()), output, force=force)
    summary = costs.calibration_summary(found)
    _out(
        {"device": found.device.name, "classes": summary},
        as_json,
        costs.calibrated_text(found, summary),
    )


def _measured_here(
    store: str,
    architecture: "Architecture",
    plan: "Plan",
    target: str | None,
    device: str | None,
    *,
    whole: bool,
) -> "Plan":
    """Times the blocks here; the plan with this device as its target."""
    import torch

    from ...profilers.local_device import local_device
    from ...search_space.document import InputError
    from ..measuring import measure_blocks
    from ..store import open_store

    where = device or _local_device()
    here, warnings = local_device(where)
    if target not in (None, here.name):
        raise InputError(f"--measure times what is here, {here.name}, and the target is {target}")
    torch.set_num_threads(1)
    say = partial(print, file=sys.stderr)
    for warning in warnings:
        say(warning)
    with open_store(store) as opened:
        failures, compositions = measure_blocks(
            opened,
            architecture,
            plan.workloads,
            where=where,
            here=here,
            whole=whole,
            tell=say,
        )
    for failure in failures:
        say(f"{failure.stage}: {failure.kind}: {failure.reason}")
    for one in compositions:
        say(
            f"{one.workload} {one.what}: blocks together {1e3 * one.pieces_s:.4g} ms, the whole "
            f"model {1e3 * one.whole_s:.4g} ms, composition error {one.error:+.1%}"
        )
    return plan.model_copy(update={"target": here.name})


def _local_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _learnt(store: str, target: str) -> "tuple[TargetTimings, Cluster]":
    """What the store, where there is one, knows of a target; and the target. Raises InputError."""
    from ...profilers.cluster import cluster
    from ...profilers.pricing import TargetTimings
    from ..measuring import target_timings

    at = cluster(target)
    if store == DEFAULT_STORE and not Path(DEFAULT_STORE.removeprefix("sqlite:///")).exists():
        return TargetTimings(), at  # nobody has made one yet
    with _existing(store) as opened:
        timings = target_timings(opened, target)
    return timings, timings.target(at)


def _trained(architecture: "Architecture", plan: "Plan", seed: int) -> "Report | Failure":
    import torch

    from ...profilers.profile import profile

    torch.set_num_threads(1)  # as in a search, so that the numbers are the same
    *_, last = profile(architecture, plan, seed=seed)
    return last


@atlas_app.command("list")
def atlas_list(
    context: ContextOption = None,
    batch: BatchOption = None,
    kv: KvOption = None,
    state: StateOption = "fp32",
    mtp: MtpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Every published architecture with its counts, caches and layers."""
    from ...search_space import published
    from . import atlas

    view = _view(context, batch, kv, state, mtp=mtp)
    entries = {name: published.entry(name) for name in published.names()}
    plain = [atlas.plain_entry(name, entry, view) for name, entry in entries.items()]
    _out({"models": plain}, as_json, atlas.table(entries, view))


@atlas_app.command("show")
def atlas_show(
    name: Annotated[str, typer.Argument(help="Of a published model, as `atlas list` prints it.")],
    context: ContextOption = None,
    batch: BatchOption = None,
    kv: KvOption = None,
    state: StateOption = "fp32",
    mtp: MtpOption = False,
    as_json: JsonOption = False,
) -> None:
    """One published architecture: its blocks, its counts and what verifies them."""
    from ...search_space import published
    from . import atlas

    view, entry = _view(context, batch, kv, state, mtp=mtp), published.entry(name)
    found = published.find(name) or name
    _out(atlas.plain_entry(found, entry, view), as_json, atlas.entry_text(found, entry, view))


@atlas_app.command("import")
def atlas_import(
    config: Annotated[Path, typer.Argument(help="A Hugging Face config.json.")],
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read a Hugging Face config.json as an architecture, and say what it could not take over."""
    from ...search_space.architecture import to_yaml
    from ...search_space.document import read_text
    from ...search_space.hugging_face.convert import read_config

    found = read_config(read_text(config, "JSON"), source=str(config))
    for told in found.not_expressed:
        print(f"{config}: not expressed: {told}", file=sys.stderr)
    architecture = found.architecture
    if as_json:
        told = {"model_type": found.model_type, "not_expressed": list(found.not_expressed)}
        _out({"key": architecture.key, "architecture": architecture.plain(), **told}, True, "")
    if output is not None or not as_json:
        _write(to_yaml(architecture.plain()), output, force=force)


@atlas_app.command("export")
def atlas_export(
    name: Annotated[str, typer.Argument(help="A YAML file, a key, or a published model.")],
    output: OutputOption = None,
    model_type: Annotated[
        str | None, typer.Option(help="The family; default: the first that can say all of it.")
    ] = None,
    force: ForceOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write an architecture as a Hugging Face config.json, exactly or not at all."""
    from ...search_space.hugging_face.convert import write_config
    from .resolve import named

    architecture = named(name, lambda: _existing(store)).config.architecture
    config = json.dumps(write_config(architecture, model_type), indent=2)
    _write(config + "\n", output, force=force)


@space_app.command("check")
def check(
    space: Annotated[Path, typer.Argument(help="The space: a YAML file.")],
    draws: Annotated[int, typer.Option(min=1, max=100_000, help="Random draws to try.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Check a space file: its choices, how much of it is legal, which laws refuse the rest, and
    which choices no kernel supports on which GPU."""
    from importlib.util import find_spec

    from ...profilers.cluster import cluster
    from ...profilers.corpus import load_corpus
    from ...profilers.kernel_support import lacks
    from ...search_space.check import load_space
    from ...search_space.space import sample
    from . import render as text

    checked = load_space(space)
    cluster(checked.plan.target)
    load_corpus(checked.plan.text.corpus).require(checked.plan.text.context)
    drawn = sample(checked, draws, seed=0)
    lacking = lacks(checked) if find_spec("triton") else None
    plain = text.plain_space(checked, drawn, lacking)
    _out(plain, as_json, text.space(checked, drawn, lacking))


@app.command()
def dashboard(
    store: StoreOption = DEFAULT_STORE,
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the dashboard: read-only, on this machine only unless --host says otherwise."""
    import subprocess
    from importlib.resources import files

    with _existing(store):
        pass
    script = files("archfront.dashboard").joinpath("app.py")
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += ["--server.port", str(port), "--server.address", host]
    if host not in ("127.0.0.1", "localhost", "::1"):
        command += ["--server.allowedHosts", host]
    print(f"dashboard: http://{host}:{port}  (Ctrl-C ends it)", file=sys.stderr)
    try:
        ended = subprocess.run(command, env={**os.environ, "ARCHFRONT_STORE": store}, check=False)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    raise typer.Exit(ended.returncode)


def _write(text: str, output: Path | None, *, force: bool) -> None:
    """To a file that is not there yet, or to stdout."""
    from ..export import write_new

    if output is None:
        print(text, end="")
    else:
        write_new(output, text, force=force)
        print(f"wrote {output}", file=sys.stderr)


def _view(
    context: int | None,
    batch: int | None,
    kv: "NumberFormat | None",
    state: "StateFormat",
    *,
    mtp: bool,
) -> "View":
    from .atlas import View

    return View(context=context or 131_072, batch=batch or 1, kv=kv, state=state, mtp=mtp)


def _how(address: str | None, workers: int | None, gpus: float, seconds: float | None) -> "Run":
    from ..search import Run

    at_once = workers or os.cpu_count() or 1
    return Run(address=address, workers=at_once, gpus_per_trial=gpus, seconds=seconds)


def _run(
    store: "Store",
    study: "Study",
    space: "SearchSpace",
    url: str,
    how: "Run",
    *,
    trials: int | None = None,
    as_json: bool,
) -> None:
    """Run a study, print its front and the next commands; exits 130 when it was cut off."""
    from ..progress import view
    from ..search import run_study
    from . import render as text

    ended = run_study(store, study, space, how, view(as_json=as_json), trials=trials)
    entries = text.front_entries(store, ended)
    steps = store.hypervolume_history(ended.name)
    _out(text.plain_front(ended, entries, steps), as_json, text.front(ended, entries, steps))
    at = "" if url == DEFAULT_STORE else f" --store {url}"
    if not as_json:
        print(text.next_commands(ended, entries, at))
    if ended.status == "interrupted":
        print(
            f"stopped early, finished trials are kept: archfront resume {ended.name}{at}",
            file=sys.stderr,
        )
        raise typer.Exit(0 if how.seconds is not None else 130)
    if not entries:
        raise typer.Exit(3)


def _existing(store: str) -> "Store":
    from ..store import open_store

    return open_store(store, readonly=True)


def _newest(store: "Store") -> "Study":
    from ...search_space.document import InputError

    found = store.studies()
    if not found:
        raise InputError("the store has no study yet: archfront search SPACE.yaml")
    return found[0]


def _free_name(store: "Store", space: str) -> str:
    taken = {study.name for study in store.studies()}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{space}-{n}") not in taken)


def _out(plain: dict[str, Any], as_json: bool, table: "RenderableType") -> None:
    """The result on stdout: one JSON document, or a table."""
    if as_json:
        print(json.dumps({"schema_version": 1, **plain}, allow_nan=False))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a pipe cuts nothing off
