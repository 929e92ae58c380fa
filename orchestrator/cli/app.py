"""The command line: results on stdout, progress and errors on stderr.

Exit codes: 0 success, 1 failure, 2 invalid input, 3 no feasible candidate, 130 interrupted (all
finished trials are kept). Commands import what they need when they run, so that `--help` does not
load torch, Ray or Optuna.
"""

import os
import sys
from typing import Annotated, NoReturn

import typer

from ..store_url import STORE_VARIABLE, holds_password
from .commands import atlas, costs, dashboard, space, studies

app = typer.Typer(
    name="archfront",
    help="Hardware-aware architecture search for hybrid language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    studies.search,
    studies.resume,
    studies.studies,
    studies.front,
    studies.show,
    studies.compare,
    studies.export,
    costs.profile,
    costs.calibrate,
    dashboard.dashboard,
):
    app.command()(command)
app.add_typer(space.app, name="space")
app.add_typer(atlas.app, name="atlas")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"archfront {installed('archfront')}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the console script; an InputError is one line on stderr and exit code 2."""
    _move_password_to_environment()
    try:
        app()
    except ValueError as error:
        from ...search_space.document import InputError

        if not isinstance(error, InputError):
            raise
        print(error, file=sys.stderr)
        sys.exit(2)
    raise AssertionError("the app exits by itself")


def _move_password_to_environment() -> None:
    """Restart with the store in the environment if an argument holds its password.

    Arguments are public: `ps` lists them, and Ray records the command line of a job.
    """
    arguments, store = list[str](), ""
    words = iter(sys.argv[1:])
    for word in words:
        option, _, value = word.partition("=")
        url = (value or next(words, "")) if option == "--store" else ""
        if holds_password(url):
            store = url
        else:
            arguments += [word] if value or option != "--store" else [word, url]
    if not store:
        return
    print(
        f"--store holds a password, which other users can see in the list of processes: "
        f"export {STORE_VARIABLE} instead",
        file=sys.stderr,
        flush=True,
    )
    interpreter = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    environment = {**os.environ, STORE_VARIABLE: store}
    os.execve(sys.executable, [sys.executable, *interpreter, *arguments], environment)
