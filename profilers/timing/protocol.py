"""How a call is timed on a device; a change of it makes other numbers and another `PROTOCOL`.

CUDA: sets of inputs, weights and caches are run in turn, so that all but what the call itself left
behind is cold in L2; a decoding step as a CUDA graph, a prefill as a stream of launches. Two anchors,
a product of 8192^3 and a copy, stand before and after: where they drift the run is worth nothing.
CPU: one set, timed by the clock.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

WARM_UPS = 3
SAMPLE_S = 2e-3  # what a sample takes at least
DISCARDED = 0.2  # the share of samples before the clock has settled
WANTED_HALF_WIDTH = 0.01
MAX_SETS = 64
DRIFT_LIMIT = 0.05
ANCHOR_SIZE, ANCHOR_BYTES = 8192, 2**30


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many samples are taken, and whether the device's speed is checked around them.

    Sampling ends when the budget is spent or the interval is narrow enough, but not before `fewest`
    samples, and within the budget not before `usual` of them.
    """

    fewest: int
    usual: int
    most: int
    budget_s: float
    check_drift: bool


FULL = Effort(fewest=1, usual=20, most=200, budget_s=2.0, check_drift=True)
BRIEF = Effort(fewest=7, usual=20, most=40, budget_s=0.15, check_drift=False)

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median seconds of a call with its 90% bootstrap interval; `drift` of the anchors meanwhile."""

    seconds: float
    low: float
    high: float
    samples: int
    drift: float = 0.0


class Drifted(RuntimeError):
    """The device's speed changed during the run by more than `DRIFT_LIMIT`."""


def sets_needed(touched_bytes: float, device: torch.device) -> int:
    """How many sets of data it takes that each finds L2 cold."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    free, _ = torch.cuda.mem_get_info(device)
    fitting = max(1, int(0.5 * free / max(1.0, touched_bytes)))
    return max(1, min(MAX_SETS, fitting, math.ceil(3 * cache / max(1.0, touched_bytes))))


def timed(
    calls: Sequence[Call], device: torch.device, *, graph: bool, effort: Effort = FULL
) -> Timing:
    """The time of one call, from calls of the same work on sets of their own."""
    if device.type != "cuda":
        return _sampled(lambda: _by_clock(calls[0]), 1, effort)
    run = _graph_of(calls, device) if graph else lambda: [call() for call in calls]
    once = _by_events(run, 1) / len(calls)
    repeats = max(1, math.ceil(SAMPLE_S / (once * len(calls))))
    before = _anchors(device) if effort.check_drift else ()
    found = _sampled(lambda: _by_events(run, repeats) / (repeats * len(calls)), WARM_UPS, effort)
    if not before:
        return found
    drift = max(abs(b / a - 1) for a, b in zip(before, _anchors(device), strict=True))
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
        while len(samples) < effort.most:
            samples.append(sample())
            spent = sum(samples) > effort.budget_s
            if len(samples) < (effort.fewest if spent else effort.usual):
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


def _anchors(device: torch.device) -> tuple[float, float]:
    """Seconds of a large product and of a large copy: the device's two speeds right now."""
    a, b = (
        torch.randn(ANCHOR_SIZE, ANCHOR_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    source = torch.empty(ANCHOR_BYTES, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copied = (
        min(_by_events(call, 3) / 3 for _ in range(3))
        for call in (lambda: torch.mm(a, b), lambda: target.copy_(source))
    )
    return product, copied
