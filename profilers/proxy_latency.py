"""Latency of the proxy model on the local device."""

import torch

from ..builders.model import build
from ..search_space.architecture import Architecture
from ..search_space.plan import TextSettings
from .local_device import local_device_name
from .report import Measurement
from .timing.protocol import BRIEF, timed

PROXY_LATENCY = frozenset({"proxy_prefill_ms", "proxy_decode_ms"})


def proxy_latency(
    proxy: Architecture, settings: TextSettings, *, device: torch.device
) -> tuple[Measurement, ...]:
    """`proxy_prefill_ms` of one training batch and `proxy_decode_ms` of its next tokens.

    Medians with 90% bootstrap intervals.
    """
    model = build(proxy, device=device).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch, settings.context)
    tokens_BT = torch.randint(proxy.vocab_size, shape, generator=generator).to(device)
    with torch.inference_mode():
        _, caches = model.prefill(tokens_BT)
        timings = {
            "proxy_prefill_ms": timed(
                [lambda: model.prefill(tokens_BT)], device, graph=False, effort=BRIEF
            ),
            "proxy_decode_ms": timed(
                [lambda: model.step(tokens_BT[:, -1], caches)], device, graph=False, effort=BRIEF
            ),
        }
    return tuple(
        Measurement.measured(
            name,
            1e3 * timing.seconds,
            low=1e3 * timing.low,
            high=1e3 * timing.high,
            device=local_device_name(device),
        )
        for name, timing in timings.items()
    )
