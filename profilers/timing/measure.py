"""An architecture's latency from its pieces, each timed once in a process of its own.

A piece's answer is kept by its key and used again; the sum has an error of its own, timings from
whole models where some were timed (`Composition`).
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ...search_space.architecture import Architecture
from ...search_space.operators import Point
from ..report import Failure

PROTOCOL = 1  # the version of protocol.py: a change of it makes other numbers
FIRST_SPREAD = 0.05  # of a sum, before any whole model was timed: notes of published profilers
FEWEST_WHOLE = 5  # whole models it takes to fit the cost of a layer beside its blocks
Kind = Literal["block", "ends", "whole"]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One timing as it is stored: what was timed, where, under what, and the answer."""

    unit: str  # "block:KEY", "ends:KEY", "whole:KEY"
    device: str
    point: Point
    seconds: float
    low: float
    high: float
    samples: int
    drift: float
    peak_bytes: int | None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return timing_key(self.unit, self.device, self.point, self.facts)


def timing_key(piece: str, device: str, point: Point, facts: Mapping[str, str]) -> str:
    """16 hex digits: the same piece, device, point and software, the same number again."""
    said = json.dumps([piece, device, asdict(point), dict(facts)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Seconds that a sum of pieces leaves out, constant and by layer, and its error: the 90th
    percentile of |sum / whole - 1|."""

    constant_s: float = 0.0
    layer_s: float = 0.0
    spread: float = FIRST_SPREAD
    models: int = 0

    @classmethod
    def fitted(cls, models: Iterable[tuple[float, int, float]]) -> "Composition":
        """From (sum of pieces, layers, whole) of models; too few of them give only an error."""
        sums, layers, wholes = (np.array(column) for column in zip(*models, strict=True))
        constant = layer = 0.0
        if len(sums) >= FEWEST_WHOLE:
            columns = np.stack([np.ones_like(sums), layers], 1) / wholes[:, None]
            constant, layer = np.linalg.lstsq(columns, 1 - sums / wholes, rcond=None)[0]
        errors = np.abs((sums + constant + layer * layers) / wholes - 1)
        return cls(
            constant_s=float(constant),
            layer_s=float(layer),
            spread=max(0.01, float(np.quantile(errors, 0.9))),
            models=len(sums),
        )


def measure(
    architecture: Architecture,
    kind: Kind,
    point: Point,
    *,
    device: str,
    name: str,
    threads: int = 1,
    limit_s: float = 120.0,
) -> Timed | Failure:
    """Time a piece or a whole model on the local `device` ("cuda:0", "cpu"), in a child process.

    Out of memory, a crash of the device and a hang are Failures; the caller's process is untouched.
    """
    label = f"{kind}:{architecture.key}"

    def failure(fault: Literal["oom", "crash", "hang"], reason: str) -> Failure:
        return Failure(key=architecture.key, stage=f"time {kind}", kind=fault, reason=reason)

    job = {
        "architecture": architecture.plain(),
        "part": kind,
        "point": asdict(point),
        "device": device,
        "threads": threads,
    }
    command = [sys.executable, "-m", "archfront.profilers.timing.worker"]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return failure("hang", f"no answer within {limit_s:.0f} s")
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no word"])[-1]
        return failure("crash", f"exit code {ended.returncode}: {last}")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    if "failure" in answer:
        return failure(answer["failure"], answer["reason"])
    return Timed(unit=label, device=name, point=point, **answer)
