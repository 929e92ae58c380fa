"""Output of a command: its result on stdout, or a file."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_result(
    plain: dict[str, Any], table: "RenderableType", *, as_json: bool, schema_version: int = 1
) -> None:
    """Print a result as one JSON document, or as a table.

    `schema_version` goes up when a key of this command's document is renamed or removed.
    """
    if as_json:
        print(json.dumps({"schema_version": schema_version, **plain}, allow_nan=False))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a pipe has no width


def write_text(text: str, output: Path | None, *, force: bool) -> None:
    """Write to a file that does not exist yet (or to any, with `force`), or to stdout.

    Raises InputError.
    """
    from ..export import write_new

    if output is None:
        print(text, end="")
    else:
        write_new(output, text, force=force)
        print(f"wrote {output}", file=sys.stderr)
