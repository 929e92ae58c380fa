"""Fit the shipped cost model on public tables of operator timings.

    python -m archfront.profilers.cost --tables DIR [--into DIR] [--processes N]

Needs the extra `archfront[fit]`. A line is printed for each slice of a table that was rejected and
for rows that were dropped from others.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from .fit import fit
from .shipped import write
from .tables import read

MAX_BYTES = 1_000_000  # of both files together


def main() -> int:
    """Fit the model on a folder of tables and write its two files."""
    parser = argparse.ArgumentParser(
        prog="python -m archfront.profilers.cost", description="Fit the shipped cost model."
    )
    parser.add_argument("--tables", type=Path, required=True, help="folder of parquet tables")
    parser.add_argument(
        "--into", type=Path, default=Path(__file__).parent, help="folder of the fitted files"
    )
    parser.add_argument("--processes", type=int, default=1, help="families fitted at once")
    given = parser.parse_args()
    if not given.tables.is_dir():
        sys.stderr.write(f"--tables must be a folder of parquet tables, got {given.tables}\n")
        return 2
    if find_spec("pyarrow") is None:
        sys.stderr.write("reading the tables needs pyarrow: pip install 'archfront[fit]'\n")
        return 2
    timings = read(given.tables, report=_print)
    _print(f"fitting {len(timings)} timings")
    size = write(fit(timings, processes=given.processes), given.into)
    assert size <= MAX_BYTES, f"both files must be at most {MAX_BYTES} bytes, got {size}"
    _print(f"wrote {size} bytes into {given.into}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
