"""Memory of an architecture on a device: weights, caches and activations, serving and training.

`memory_gib` is counted: weights, caches and live activations. `peak_gib` is estimated: what an
inference engine takes, with cache pages, workspace, the process itself and fragmentation. The
verdict compares `peak_gib` with the memory of the device.
"""

from typing import Literal

from ..search_space.accounting import (
    cache_bytes_at,
    paged_cache_bytes,
    parameters,
    weight_bytes,
)
from ..search_space.architecture import Architecture
from ..search_space.operators import ACTIVATION_BYTES, STATE_BYTES, Point, Scan
from ..search_space.workload import Workload
from .lowering import calls
from .report import Measurement

GIB = 2**30
PREFILL_CHUNK = 8192  # tokens that an engine prefills at once
LOGIT_BYTES = 4
PROCESS = (0.3 * GIB, 0.5 * GIB, 0.9 * GIB)  # driver and libraries: low, likely, high
WORKSPACE = 64 * 2**20
FRAGMENTATION = (1.0, 1.05, 1.15)  # reserved over used memory of the allocator: low, likely, high
TRAINING_HALF_WIDTH = 0.25  # relative, of activations: how much is fused and recomputed varies
# Bytes per parameter: bf16 weight and gradient, fp32 master and two moments of AdamW.
OPTIMIZER_BYTES = 16
LOSS_CHUNKS = 16  # parts of the logits of a training step, of which one is in memory
MARGIN = 0.97  # fraction of a device's memory that may be used

Verdict = Literal["fits", "tight", "does not fit"]


def memory(
    architecture: Architecture, workload: Workload, *, devices: int = 1
) -> tuple[Measurement, ...]:
    """The memory metrics of a workload: `memory_gib`, `cache_bytes_per_sequence`,
    `paged_cache_bytes_per_sequence`, `peak_gib`, and `train_memory_gib` with a training step.

    On several devices `peak_gib` and `train_memory_gib` are those of each device.
    """
    name, weights = workload.name, weight_bytes(architecture)
    per_sequence = cache_bytes_at(architecture, workload.decode_context)
    decode = workload.decode_batch * per_sequence
    prefill = workload.prefill_batch * cache_bytes_at(architecture, workload.prefill_tokens)
    of_decode = activations(architecture, workload.decode_batch, workload.decode_batch)
    tokens = min(workload.prefill_batch * workload.prefill_tokens, PREFILL_CHUNK)
    of_prefill = activations(architecture, tokens, workload.prefill_batch)
    counted = weights + max(decode + of_decode, prefill + of_prefill)
    paged = paged_cache_bytes(architecture, workload.decode_context)
    likely = weights + max(
        workload.decode_batch * paged + of_decode,
        workload.prefill_batch * paged_cache_bytes(architecture, workload.prefill_tokens)
        + of_prefill,
    )
    low, value, high = (
        (reserved * (likely / devices + WORKSPACE) + process) / GIB
        for reserved, process in zip(FRAGMENTATION, PROCESS, strict=True)
    )
    found = [
        Measurement.counted("memory_gib", counted / GIB, workload=name),
        Measurement.counted("cache_bytes_per_sequence", per_sequence, workload=name),
        Measurement.counted("paged_cache_bytes_per_sequence", paged, workload=name),
        Measurement.estimated("peak_gib", value, low, high, workload=name, device=None),
    ]
    if workload.train_batch is not None and workload.train_tokens is not None:
        fixed, kept = training_bytes(architecture, workload.train_batch, workload.train_tokens)
        whole = (fixed + kept) / devices / GIB
        half_width = TRAINING_HALF_WIDTH * kept / devices / GIB
        low, high = whole - half_width, whole + half_width
        found.append(
            Measurement.estimated("train_memory_gib", whole, low, high, workload=name, device=None)
        )
    return tuple(found)


def verdict(peak: Measurement, memory_gb: float) -> Verdict:
    """Whether a peak fits a device with `memory_gb` GB (1e9 bytes).

    "tight" where the estimate fits and the upper end of its interval does not.
    """
    room = MARGIN * memory_gb * 1e9 / GIB
    high = peak.value if peak.high is None else peak.high
    return "fits" if high <= room else "tight" if peak.value <= room else "does not fit"


def activations(architecture: Architecture, rows: int, sequences: int) -> int:
    """Live bytes of a forward pass over `rows` tokens: residual stream, widest block, logits.

    A block holds its input and the outputs of its projections (of experts, `top_k` rows per token);
    the logits are those of the last token of each of `sequences`.
    """
    widest = max(_outputs(architecture, symbol) for symbol in architecture.blocks)
    logits = sequences * architecture.vocab_size * (ACTIVATION_BYTES + LOGIT_BYTES)
    return rows * (2 * architecture.d_model + widest) * ACTIVATION_BYTES + logits


def training_bytes(architecture: Architecture, batch: int, tokens: int) -> tuple[int, int]:
    """Bytes of (weights, gradients and optimizer; activations kept for the backward pass).

    A sub-block keeps its input and the outputs of its projections, before and after the activation
    function; a chunked recurrence keeps the state before each chunk. Nothing is recomputed.
    """
    rows = batch * tokens
    kept = 2.0 * rows * architecture.d_model * ACTIVATION_BYTES
    for body in architecture.bodies:
        width = 2 * architecture.d_model + 2 * _outputs(architecture, body.symbol)
        kept += rows * width * ACTIVATION_BYTES * body.block.token_fraction
    for call, times in calls(
        architecture, Point(batch=batch, tokens=tokens, context=tokens)
    ).items():
        if isinstance(call, Scan):
            state = call.lanes * call.k_dim * call.v_dim * STATE_BYTES
            kept += times * call.serial_steps * state
    kept += rows * architecture.vocab_size * (ACTIVATION_BYTES + 2 * LOGIT_BYTES) / LOSS_CHUNKS
    return OPTIMIZER_BYTES * parameters(architecture, mtp=True).total, round(kept)


def _outputs(architecture: Architecture, symbol: str) -> int:
    weights = architecture.blocks[symbol].weights(architecture.d_model)
    return sum(weight.shape[0] * weight.active for weight in weights if weight.role)
