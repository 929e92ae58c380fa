"""Timings of units and whole models, each taken in a process of its own, and their composition.

A timing is stored by its key and reused. A sum of timing units leaves out what lies between them;
`Composition` adds that and states the error of the sum.
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

PROTOCOL = 1  # version of protocol.py: timings of different versions do not compare
DEFAULT_HALF_WIDTH = 0.05  # of a sum before a whole model was timed; published profilers report it
MIN_WHOLE_MODELS = 5  # whole models needed to fit the time between the blocks
Kind = Literal["block", "embedding_and_head", "whole"]  # what `measure` times


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One timing as it is stored: what was timed, where and under which software.

    `unit` is "KIND:ARCHITECTURE_KEY". `low` and `high` bound the 90% interval of the median
    `seconds`; `drift` is that of the timing protocol; `peak_bytes` is None on a CPU.
    """

    unit: str
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
        """The identity of the timing in the store, see `timing_key`."""
        return timing_key(self.unit, self.device, self.point, self.facts)


def timing_key(unit: str, device: str, point: Point, facts: Mapping[str, str]) -> str:
    """16 hex digits that identify a unit at a point on a device under given software."""
    identity = json.dumps([unit, device, asdict(point), dict(facts)], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Correction of a sum of timing units: `constant_s` per pass and `layer_s` per layer.

    `half_width` is the relative error of the corrected sum, the 90th percentile of
    |sum / whole - 1| over `models` whole models.
    """

    constant_s: float = 0.0
    layer_s: float = 0.0
    half_width: float = DEFAULT_HALF_WIDTH
    models: int = 0

    @classmethod
    def fitted(cls, models: Iterable[tuple[float, int, float]]) -> "Composition":
        """From (sum of units in seconds, layers, whole model in seconds) of models.

        Least squares of the relative error; fewer than `MIN_WHOLE_MODELS` give only the error.
        """
        sums, layers, wholes = (np.array(column) for column in zip(*models, strict=True))
        constant = layer = 0.0
        if len(sums) >= MIN_WHOLE_MODELS:
            columns = np.stack([np.ones_like(sums), layers], 1) / wholes[:, None]
            constant, layer = np.linalg.lstsq(columns, 1 - sums / wholes, rcond=None)[0]
        errors = np.abs((sums + constant + layer * layers) / wholes - 1)
        return cls(
            constant_s=float(constant),
            layer_s=float(layer),
            half_width=max(0.01, float(np.quantile(errors, 0.9))),
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
    """Time a unit or a whole model on the local `device` ("cuda:0", "cpu"), in a child process.

    `name` is the device's name in devices.yaml. Out of memory, a crash of the device and no answer
    within `limit_s` seconds are Failures, and leave the caller's process as it was.
    """
    label = f"{kind}:{architecture.key}"

    def failure(failed: Literal["oom", "crash", "hang"], reason: str) -> Failure:
        return Failure(key=architecture.key, stage=f"time {kind}", kind=failed, reason=reason)

    job = {
        "architecture": architecture.plain(),
        "kind": kind,
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
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return failure("crash", f"exit code {ended.returncode}: {last}")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    if "failure" in answer:
        return failure(answer["failure"], answer["reason"])
    return Timed(unit=label, device=name, point=point, **answer)
