"""The commands of published architectures and of Hugging Face configs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...store_url import DEFAULT_STORE
from .. import options
from ..output import print_result, write_text

if TYPE_CHECKING:
    from ....search_space.accounting import StateFormat
    from ....search_space.operators import NumberFormat
    from ..render_atlas import View

app = typer.Typer(
    help="Published architectures, and Hugging Face configs in and out.", no_args_is_help=True
)


@app.command("list")
def list_models(
    context: options.Context = None,
    batch: options.Batch = None,
    kv: options.Kv = None,
    state: options.State = "fp32",
    mtp: options.Mtp = False,
    as_json: options.Json = False,
) -> None:
    """List the published architectures with parameter counts, cache sizes and layers."""
    from ....search_space import published
    from .. import render_atlas

    view = _view(context, batch, kv, state, mtp=mtp)
    entries = {name: published.entry(name) for name in published.names()}
    plain = [render_atlas.plain_entry(name, entry, view) for name, entry in entries.items()]
    print_result({"models": plain}, render_atlas.table(entries, view), as_json=as_json)


@app.command("show")
def show_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Published model, as `atlas list` names it")
    ],
    context: options.Context = None,
    batch: options.Batch = None,
    kv: options.Kv = None,
    state: options.State = "fp32",
    mtp: options.Mtp = False,
    as_json: options.Json = False,
) -> None:
    """Show one published architecture: its blocks, its counts, and what verifies them."""
    from ....search_space import published
    from .. import render_atlas

    view, entry = _view(context, batch, kv, state, mtp=mtp), published.entry(model)
    found = published.find(model) or model
    plain = render_atlas.plain_entry(found, entry, view)
    print_result(plain, render_atlas.entry_text(found, entry, view), as_json=as_json)


@app.command("import")
def import_config(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Hugging Face config.json")],
    output: options.Output = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Convert a Hugging Face config.json to an architecture file.

    Fields that an architecture cannot express are listed on stderr.
    """
    from ....search_space.architecture import to_yaml
    from ....search_space.document import read_text
    from ....search_space.hugging_face.convert import read_config

    found = read_config(read_text(config, "JSON"), source=str(config))
    for field in found.not_expressed:
        print(f"{config}: not expressed: {field}", file=sys.stderr)
    architecture = found.architecture
    if as_json:
        plain = {
            "key": architecture.key,
            "architecture": architecture.plain(),
            "model_type": found.model_type,
            "not_expressed": list(found.not_expressed),
        }
        print_result(plain, "", as_json=True)
    if output is not None or not as_json:
        write_text(to_yaml(architecture.plain()), output, force=force)


@app.command("export")
def export_config(
    architecture: options.Architecture,
    output: options.Output = None,
    model_type: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face model type (default: the first that expresses the architecture)"
        ),
    ] = None,
    force: options.Force = False,
    store: options.Store = DEFAULT_STORE,
) -> None:
    """Convert an architecture to a Hugging Face config.json.

    Fails if no model type expresses the architecture exactly.
    """
    from ....search_space.hugging_face.convert import write_config
    from ..resolve import resolve

    found = resolve(architecture, store).config.architecture
    config = json.dumps(write_config(found, model_type), indent=2)
    write_text(config + "\n", output, force=force)


def _view(
    context: int | None,
    batch: int | None,
    kv: "NumberFormat | None",
    state: "StateFormat",
    *,
    mtp: bool,
) -> "View":
    from ..render_atlas import View

    return View(context=context or 131_072, batch=batch or 1, kv=kv, state=state, mtp=mtp)
