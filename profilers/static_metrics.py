"""Metrics of a candidate that need no training: counted, or estimated by the cost model."""

from ..search_space.accounting import cache_bytes, flops_per_token, parameters, weight_bytes
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan
from .cluster import cluster
from .memory import GIB, memory
from .pricing import Pricing, TargetTimings
from .report import Measurement


def static_metrics(
    architecture: Architecture, plan: Plan, timings: TargetTimings | None = None
) -> tuple[Measurement, ...]:
    """Sizes, memory and latency on the plan's target and workloads, without building the model.

    `timings` are those taken on the target. Raises ValueError when the target cannot run the
    precision plan, or when the architecture cannot be split over its devices.
    """
    counts, caches = parameters(architecture), cache_bytes(architecture)
    context = plan.workloads[0].decode_context
    counted = {
        "total_params": counts.total,
        "active_params": counts.active,
        "flops_per_token": flops_per_token(architecture, context),
        "weight_gib": weight_bytes(architecture) / GIB,
        "kv_bytes_per_token": caches.kv_bytes_per_token,
        "state_bytes_per_sequence": caches.state_bytes_per_sequence,
    }
    found = [Measurement.counted(name, value) for name, value in counted.items()]
    target, timings = cluster(plan.target), timings or TargetTimings()
    for workload in plan.workloads:
        estimated = memory(architecture, workload, devices=target.count)
        pricing = Pricing.for_architecture(architecture, target, timings, workload)
        peak = pricing.measured_peak(architecture, workload)
        found += [peak if peak and m.name == peak.name else m for m in estimated]
        found += pricing.latency(architecture, workload)
    return tuple(found)
