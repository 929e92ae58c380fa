"""The commands of search spaces."""

import json
from typing import Annotated

import typer

from .. import options
from ..output import print_result

app = typer.Typer(help="Check space files, and print their schema.", no_args_is_help=True)


@app.command()
def check(
    space: options.SpaceFile,
    draws: Annotated[int, typer.Option(min=1, max=100_000, help="Random candidates to draw")] = 200,
    as_json: options.Json = False,
) -> None:
    """Check a space file.

    Shows its choices, how many random candidates are legal, which constraints reject the others,
    and which choices no kernel supports.
    """
    from importlib.util import find_spec

    from ....profilers.cluster import cluster
    from ....profilers.corpus import load_corpus
    from ....search_space.check import load_space
    from ....search_space.space import sample
    from .. import render_space

    checked = load_space(space)
    cluster(checked.plan.target)
    load_corpus(checked.plan.text.corpus).require(checked.plan.text.context)
    drawn = sample(checked, draws, seed=0)
    kernels = None
    if find_spec("triton"):
        from ....profilers.kernel_support import kernel_archs, unsupported_choices

        archs = kernel_archs([checked.plan.target])
        kernels = render_space.Kernels(
            archs=archs, unsupported=tuple(unsupported_choices(checked, archs))
        )
    plain = render_space.plain(checked, drawn, kernels)
    print_result(plain, render_space.table(checked, drawn, kernels), as_json=as_json)


@app.command()
def schema(
    architecture: Annotated[
        bool,
        typer.Option("--architecture", help="Print the schema of architecture files instead"),
    ] = False,
) -> None:
    """Print the JSON Schema of space files, with which an editor completes and checks them."""
    from ....search_space.schema import architecture_schema, space_schema

    print(json.dumps(architecture_schema() if architecture else space_schema(), indent=2))
