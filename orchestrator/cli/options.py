"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..store_url import STORE_VARIABLE

Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="Store of the results: sqlite:///FILE or postgresql://USER@HOST/DATABASE",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]

SpaceFile = Annotated[
    Path, typer.Argument(metavar="SPACE", help="Space file (YAML)", show_default=False)
]
Architecture = Annotated[
    str,
    typer.Argument(
        metavar="ARCHITECTURE",
        help="Architecture file (YAML), name of a published model, or key in the store",
    ),
]
Key = Annotated[
    str, typer.Argument(metavar="KEY", help="Architecture key, or a unique prefix of it")
]
OfStudy = Annotated[
    str | None,
    typer.Option(
        "--study",
        help="Study that a key is looked up in (default: the one with its newest trial)",
    ),
]

Sampler = Annotated[
    Literal["tpe", "random", "nsga2"] | None,
    typer.Option(help="Sampler of candidates (default: from the space file)"),
]
Seconds = Annotated[
    float | None, typer.Option(min=1, help="Time budget in seconds (default: no limit)")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to run on, or 'auto' (default: start a local one)")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Concurrent trials (default: one per CPU)")
]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs per trial (fractions allowed)")]

Context = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000_000, help="Context length in tokens per sequence"),
]
Batch = Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Batch size in sequences")]
Workloads = Annotated[
    list[str] | None,
    typer.Option(help="Workload by name; may be repeated (default: from the profile plan)"),
]
Device = Annotated[
    str | None, typer.Option(help="Local device, cpu or cuda:N (default: cuda:0 if there is one)")
]
Kv = Annotated[
    Literal["bf16", "fp8", "int8"] | None,
    typer.Option(help="KV-cache precision (default: from the precision plan)"),
]
State = Annotated[Literal["fp32", "bf16"], typer.Option(help="Precision of recurrent states")]
Mtp = Annotated[
    bool, typer.Option("--mtp", help="Include multi-token-prediction modules in the counts")
]

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Output file (default: standard output)")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file")]
