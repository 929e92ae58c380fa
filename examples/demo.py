"""`make demo`: a search of the tiny space in the folder demo/, its front, an exported file."""

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

TRIALS = 24
FOLDER = Path("demo")


def main() -> None:
    """Search the tiny space, print its front, export the knee."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    store = f"sqlite:///{FOLDER}/archfront.db"
    space = os.path.relpath(str(files("archfront.examples").joinpath("tiny.yaml")))
    _archfront("search", space, "--trials", str(TRIALS), "--seed", "1", "--store", store)
    front = json.loads(_archfront("front", "--json", "--store", store, quiet=True))
    _archfront("export", front["knee"], "-o", str(FOLDER / "chosen.yaml"), "--store", store)
    print("       make dashboard")


def _archfront(*command: str, quiet: bool = False) -> str:
    program = Path(sys.executable).with_name("archfront")
    if not quiet:
        print(f"\n$ archfront {' '.join(command)}", flush=True)
    ended = subprocess.run(
        [program, *command], check=False, text=True, stdout=subprocess.PIPE if quiet else None
    )
    if ended.returncode:
        sys.exit(ended.returncode)
    return ended.stdout or ""


if __name__ == "__main__":
    main()
