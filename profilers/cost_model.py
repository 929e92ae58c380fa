"""The estimate of latency without the device: three constants an operator class.

    t = max(flops / (peak * compute), bytes / (bandwidth * memory)) + overhead

An architecture and a workload become a list of operator calls; their times add up. The constants
were fitted (log space, soft L1) on 180,000 public operator timings of six data-centre GPUs, pooled;
`p90` is the relative error that 90% of those timings stay within. It bounds the estimate: errors
add up within a class, as one wrong constant would make them, and in quadrature between classes.
"""

import math
from dataclasses import dataclass

from ..search_space.accounting import placed_weights
from ..search_space.architecture import Architecture
from ..search_space.operators import Operator, Point
from ..search_space.workload import Workload
from .device import Device
from .lowering import calls
from .report import Measurement


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Attained shares of peak FLOP/s and bandwidth, launch overhead, and the error of the fit."""

    compute: float
    memory: float
    overhead_us: float
    p90: float
    step_us: float = 0.0  # one sequential chunk of a recurrence


FAMILIES = {
    "gemm": Constants(compute=0.739, memory=0.745, overhead_us=3.05, p90=0.38),
    "gemm_fp8": Constants(compute=0.462, memory=0.339, overhead_us=7.02, p90=0.74),
    "attention_prefill": Constants(compute=0.455, memory=0.213, overhead_us=12.3, p90=0.45),
    "attention_decode": Constants(compute=0.670, memory=0.663, overhead_us=11.9, p90=0.62),
    "mla_prefill": Constants(compute=0.456, memory=0.423, overhead_us=16.7, p90=0.40),
    "mla_decode": Constants(compute=0.598, memory=0.707, overhead_us=12.6, p90=0.35),
    "scan": Constants(compute=0.670, memory=0.412, overhead_us=16.6, p90=0.60, step_us=2.51),
    "recurrent_step": Constants(compute=0.670, memory=0.872, overhead_us=3.75, p90=0.20),
    "conv": Constants(compute=0.670, memory=0.391, overhead_us=2.96, p90=0.48),
    "conv_step": Constants(compute=0.670, memory=0.391, overhead_us=2.96, p90=0.48),
    "experts": Constants(compute=0.282, memory=0.855, overhead_us=26.6, p90=0.59),
    "experts_fp8": Constants(compute=0.154, memory=0.810, overhead_us=36.8, p90=0.44),
    # No timings at hand. Norms, activations, lookups: as the convolution's decode form. Products of
    # 4-bit weights: as those of 8 bits. Index scores: as the attention they stand before. A scan
    # without products between channels: as the recurrence of one token.
    "rows": Constants(compute=0.670, memory=0.700, overhead_us=1.92, p90=0.50),
    "gemm_fp4": Constants(compute=0.462, memory=0.339, overhead_us=7.02, p90=0.74),
    "experts_fp4": Constants(compute=0.154, memory=0.810, overhead_us=36.8, p90=0.59),
    "index_scores": Constants(compute=0.455, memory=0.213, overhead_us=12.3, p90=0.62),
    "channel_scan": Constants(
        compute=0.670, memory=0.412, overhead_us=16.6, p90=0.60, step_us=2.51
    ),
}


def latency(
    architecture: Architecture, device: Device, workload: Workload
) -> tuple[Measurement, ...]:
    """Estimated `prefill_ms` and `decode_ms` of a workload, each with its 90% interval.

    Raises ValueError when the plan needs a number format that the device lacks, Uncountable for an
    encoder-decoder.
    """
    formats = {placed.format for placed in placed_weights(architecture)}
    if "fp8" in formats and device.fp8 is None:
        raise ValueError(f"{device.name} has no FP8 units, the precision plan needs them")
    points = {
        "prefill_ms": Point(
            batch=workload.prefill_batch,
            tokens=workload.prefill_tokens,
            context=workload.prefill_tokens,
        ),
        "decode_ms": Point(batch=workload.decode_batch, tokens=1, context=workload.decode_context),
    }
    found = []
    for name, point in points.items():
        by_class: dict[str, float] = {}
        for call, times in calls(architecture, point).items():
            spent = times * seconds(call, device)
            by_class[call.family] = by_class.get(call.family, 0.0) + spent
        total = sum(by_class.values())
        error = math.hypot(*(t * FAMILIES[operator].p90 for operator, t in by_class.items()))
        found.append(
            Measurement(
                name=name,
                workload=workload.name,
                value=1e3 * total,
                low=1e3 * (total - error),
                high=1e3 * (total + error),
                provenance="estimated",
                device=device.name,
            )
        )
    return tuple(found)


def seconds(call: Operator, device: Device) -> float:
    """The time of one call on a device, by its family's constants."""
    constants = FAMILIES[call.family]
    peak = (device.fp8 if call.format == "fp8" and device.fp8 else device.bf16) * 1e12
    waves = call.serial_steps * math.ceil(call.lanes / device.units)
    busy = max(
        call.flops / (peak * constants.compute),
        call.bytes / (device.memory_gbps * 1e9 * constants.memory),
        waves * constants.step_us * 1e-6,
    )
    return busy + constants.overhead_us * 1e-6
