"""Latency measured on the local device: warm, repeated, median with a bootstrap interval."""

import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from ..builders.model import build
from ..search_space.architecture import Architecture
from ..search_space.plan import TextTask
from .report import Measurement

WARM_UPS, MIN_SAMPLES, MAX_SAMPLES, BUDGET_S = 2, 7, 40, 0.15


def local_device_name(device: torch.device) -> str:
    """What a measured number says it was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()}, {torch.get_num_threads()} thread(s)"


def proxy_latency(
    proxy: Architecture, task: TextTask, *, device: torch.device
) -> tuple[Measurement, ...]:
    """`proxy_prefill_ms` over one training batch and `proxy_decode_ms` of its next token."""
    model = build(proxy, device=device).eval()
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(proxy.vocab_size, (task.batch, task.context), generator=generator).to(
        device
    )
    with torch.inference_mode():
        _, caches = model.prefill(tokens_BT)
        prefill = time_calls(lambda: model.prefill(tokens_BT), device)
        decode = time_calls(lambda: model.step(tokens_BT[:, -1], caches), device)
    return tuple(
        Measurement.measured(
            name,
            1e3 * median,
            low=1e3 * low,
            high=1e3 * high,
            device=local_device_name(device),
        )
        for name, (median, low, high) in (
            ("proxy_prefill_ms", prefill),
            ("proxy_decode_ms", decode),
        )
    )


def time_calls(call: Callable[[], object], device: torch.device) -> tuple[float, float, float]:
    """Seconds of `call`: the median and a 90% bootstrap interval of it.

    Samples until `BUDGET_S` is spent, at least `MIN_SAMPLES`, after `WARM_UPS` unmeasured calls.
    """
    samples: list[float] = []
    for index in range(WARM_UPS + MAX_SAMPLES):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        if index >= WARM_UPS:
            samples.append(time.perf_counter() - start)
        if len(samples) >= MIN_SAMPLES and sum(samples) > BUDGET_S:
            break
    drawn = np.random.default_rng(0).choice(samples, size=(200, len(samples)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.05, 0.95))
    return float(np.median(samples)), float(low), float(high)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
