"""Fits the shipped cost model on the public tables: python -m archfront.profilers.cost.__main__ --tables DIR.

Needs the extra `archfront[fit]`. What the tables' check refused or dropped is printed, line by line.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from .fit import fit
from .shipped import write
from .tables import read

MAX_BYTES = 1_000_000  # of both files in the package


def main() -> int:
    parser = argparse.ArgumentParser(description="Fits the shipped cost model.")
    parser.add_argument("--tables", type=Path, default=Path("../shared/measured_ops"))
    parser.add_argument("--into", type=Path, default=Path(__file__).parent)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    if not given.tables.is_dir():
        sys.stderr.write(f"--tables must be a folder of parquet tables, got {given.tables}\n")
        return 2
    if find_spec("pyarrow") is None:
        sys.stderr.write("reading the tables needs pyarrow: pip install 'archfront[fit]'\n")
        return 2
    timings = read(given.tables, report=_say)
    _say(f"fitting {len(timings)} timings")
    size = write(fit(timings, processes=given.processes), given.into)
    assert size <= MAX_BYTES, f"the fitted files are to take {MAX_BYTES} bytes at most, got {size}"
    _say(f"wrote {size} bytes into {given.into}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
