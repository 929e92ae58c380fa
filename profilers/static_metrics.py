"""What is known of a candidate before anything is built: counted numbers and estimated latency."""

from ..search_space.accounting import cache_bytes, flops_per_token, parameters, weight_bytes
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan
from .cluster import cluster
from .memory import GIB, memory
from .pricing import TargetTimings, latency, measured_peak
from .report import Measurement


def static_metrics(
    architecture: Architecture, plan: Plan, timings: TargetTimings | None = None
) -> tuple[Measurement, ...]:
    """What needs neither a build nor a device: counted numbers, estimated memory and latency.

    `timings` is what was timed on the target. Raises ValueError when the target cannot run the
    precision plan or its devices cannot share the architecture out.
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
    target = cluster(plan.target)
    for workload in plan.workloads:
        peak = measured_peak(architecture, target, workload, timings or TargetTimings())
        told = memory(architecture, workload, devices=target.count)
        found += [peak if peak and m.name == peak.name else m for m in told]
        found += latency(architecture, target, workload, timings)
    return tuple(found)
