"""Progress of a search: a bar or lines on stderr, or JSON events on stdout."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 15


@dataclass(frozen=True, kw_only=True)
class State:
    """Progress of a search."""

    wanted: int
    complete: int
    failed: int
    rejected: int
    running: int
    front_size: int
    hypervolume: float | None
    seconds: float
    seconds_left: float | None

    @property
    def line(self) -> str:
        """The state in one line."""
        left = "" if self.seconds_left is None else f" · {self.seconds_left:.0f} s left"
        volume = "" if self.hypervolume is None else f" · hypervolume {self.hypervolume:.3f}"
        return (
            f"{self.complete} of {self.wanted} done · {self.running} running · "
            f"{self.failed} failed · {self.rejected} rejected · front {self.front_size}"
            f"{volume}{left}"
        )


class View(Protocol):
    """Receives the progress of a search."""

    def show(self, state: State) -> None:
        """Show a state; called when a trial begins or ends."""
        ...

    def close(self) -> None:
        """End the view; called once."""
        ...


class Bar:
    """A progress bar on a terminal."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("search"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=False,
        )
        self.task = self.progress.add_task("starting Ray", total=None)
        self.progress.start()

    def show(self, state: State) -> None:
        done = state.complete + state.failed
        self.progress.update(self.task, total=state.wanted, completed=done, description=state.line)

    def close(self) -> None:
        self.progress.stop()


class Lines:
    """A line on stderr every `LINE_EVERY_S` seconds, where it is no terminal."""

    def __init__(self) -> None:
        self.last = -float("inf")
        self.state: State | None = None
        print("search: starting Ray", file=sys.stderr, flush=True)

    def show(self, state: State) -> None:
        self.state = state
        if time.monotonic() - self.last >= LINE_EVERY_S:
            self.last = time.monotonic()
            print(f"search: {state.line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.state is not None:
            print(f"search: {self.state.line}", file=sys.stderr, flush=True)


class Events:
    """JSON objects on stdout, one per line."""

    def show(self, state: State) -> None:
        print(json.dumps({"event": "progress", **asdict(state)}), flush=True)

    def close(self) -> None:
        """Do nothing: nothing is held open."""


def view(*, as_json: bool) -> View:
    """The view for this process: JSON events, a bar on a terminal, lines elsewhere."""
    if as_json:
        return Events()
    return Bar() if sys.stderr.isatty() else Lines()


@contextmanager
def counting(*, as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """`show(what, done, of)`: a bar per `what` on a terminal, else a line when it is done."""
    console = Console(stderr=True)
    if as_json or not console.is_terminal:

        def line(what: str, done: int, of: int) -> None:
            if done == of and not as_json:
                print(f"{what}: {of} points", file=sys.stderr)

        yield line
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def bar(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of)
            progress.update(bars[what], completed=done)

        yield bar
