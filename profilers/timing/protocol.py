"""The timing protocol: median seconds of a call with a 90% bootstrap interval.

CUDA: the calls run in turn on separate sets of inputs, weights and caches, so that L2 holds nothing
of a set when its turn comes. A decoding step is captured as a CUDA graph, a prefill launched
kernel by kernel, and both are timed with CUDA events. Two reference operations, an 8192^3 matrix
product and a 1 GiB copy, are timed before and after to detect a change of clock speed.
CPU: one set, timed with `time.perf_counter`.

A change here changes the numbers: increment `measure.PROTOCOL` with it.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

WARM_UPS = 3
SAMPLE_S = 2e-3  # least time of one sample
DISCARDED = 0.2  # fraction of the samples, from the first on, before the clock has settled
WANTED_HALF_WIDTH = 0.01  # of the interval, relative to the median; sampling stops there
MAX_SETS = 64
DRIFT_LIMIT = 0.05
REFERENCE_SIZE, REFERENCE_BYTES = 8192, 2**30


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many samples to take, and whether to time the reference operations around them.

    Sampling stops when `budget_s` is spent, though not before `min_samples`, or when the interval
    is narrow enough, though not before `usual_samples`, and always at `max_samples`.
    """

    min_samples: int
    usual_samples: int
    max_samples: int
    budget_s: float
    check_drift: bool


FULL = Effort(min_samples=1, usual_samples=20, max_samples=200, budget_s=2.0, check_drift=True)
# For a device that other trials may share, and whose numbers are indications only.
BRIEF = Effort(min_samples=7, usual_samples=20, max_samples=40, budget_s=0.15, check_drift=False)

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median seconds of a call and the bounds of its 90% bootstrap interval.

    `drift` is the relative change of the reference operations during the run; 0 on a CPU.
    """

    seconds: float
    low: float
    high: float
    samples: int
    drift: float = 0.0


class Drifted(RuntimeError):
    """The reference operations changed by more than `DRIFT_LIMIT` during the run."""


def sets_needed(touched_bytes: float, device: torch.device) -> int:
    """How many sets of `touched_bytes` each must be cycled for every call to start with a cold L2.

    1 on a CPU; on a GPU enough for three times the L2 cache, at most `MAX_SETS` and at most half
    of the free memory.
    """
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    free, _ = torch.cuda.mem_get_info(device)
    fitting = max(1, int(0.5 * free / max(1.0, touched_bytes)))
    return max(1, min(MAX_SETS, fitting, math.ceil(3 * cache / max(1.0, touched_bytes))))


def timed(
    calls: Sequence[Call], device: torch.device, *, graph: bool, effort: Effort = FULL
) -> Timing:
    """Time one call on a device.

    `calls` do the same work, each on its own set of data (see `sets_needed`). With `graph` they
    are captured as one CUDA graph, as engines run a decoding step; a CPU runs the first call only.
    Raises `Drifted` where the speed of the device changed meanwhile; errors of the calls pass.
    """
    if device.type != "cuda":
        return _sampled(lambda: _by_clock(calls[0]), 1, effort)
    run = _graph_of(calls, device) if graph else lambda: [call() for call in calls]
    once = _by_events(run, 1) / len(calls)
    repeats = max(1, math.ceil(SAMPLE_S / (once * len(calls))))
    before = _reference_seconds(device) if effort.check_drift else None
    found = _sampled(lambda: _by_events(run, repeats) / (repeats * len(calls)), WARM_UPS, effort)
    if before is None:
        return found
    drift = max(abs(b / a - 1) for a, b in zip(before, _reference_seconds(device), strict=True))
    if drift > DRIFT_LIMIT:
        raise Drifted(f"the device's speed changed by {drift:.1%} during the run")
    return Timing(
        seconds=found.seconds, low=found.low, high=found.high, samples=found.samples, drift=drift
    )


def _sampled(sample: Callable[[], float], warm_ups: int, effort: Effort) -> Timing:
    for _ in range(warm_ups):
        sample()
    samples: list[float] = []
    gc.disable()
    try:
        while len(samples) < effort.max_samples:
            samples.append(sample())
            spent = sum(samples) > effort.budget_s
            if len(samples) < (effort.min_samples if spent else effort.usual_samples):
                continue
            low, median, high = _interval(samples)
            if spent or (high - low) / 2 <= WANTED_HALF_WIDTH * median:
                break
    finally:
        gc.enable()
    low, median, high = _interval(samples)
    return Timing(seconds=median, low=low, high=high, samples=len(samples))


def _interval(samples: Sequence[float]) -> tuple[float, float, float]:
    kept = samples[int(DISCARDED * len(samples)) :]
    drawn = np.random.default_rng(0).choice(kept, size=(200, len(kept)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.05, 0.95))
    return float(low), float(np.median(kept)), float(high)


def _by_clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _by_events(run: Call, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def _graph_of(calls: Sequence[Call], device: torch.device) -> Call:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            for call in calls:
                call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _reference_seconds(device: torch.device) -> tuple[float, float]:
    """Seconds of a large matrix product and of a large copy: compute and memory speed now."""
    a, b = (
        torch.randn(REFERENCE_SIZE, REFERENCE_SIZE, device=device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    source = torch.empty(REFERENCE_BYTES, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copied = (
        min(_by_events(call, 3) / 3 for _ in range(3))
        for call in (lambda: torch.mm(a, b), lambda: target.copy_(source))
    )
    return product, copied
