"""Memory of an architecture on a device: weights, caches, activations; served and in training.

`memory_gib` is counted: what the mathematics needs. `peak_gib` is estimated: what an engine takes,
with pages, workspace, the process itself and fragmentation. The verdict compares that with the device.
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
PREFILL_CHUNK = 8192  # engines prefill long prompts in pieces of about this many tokens
LOGIT_BYTES = 4
PROCESS = (0.3 * GIB, 0.5 * GIB, 0.9 * GIB)  # of the driver and its libraries: low, likely, high
WORKSPACE = 64 * 2**20
FRAGMENTATION = (1.0, 1.05, 1.15)  # of what the allocator reserves over what is used
TRAINING_SPREAD = 0.25  # of activations, by how much is fused and recomputed
OPTIMIZER_BYTES = 16  # a parameter: bf16 weight and gradient, fp32 master and two moments of AdamW
LOSS_CHUNKS = 16  # in which the logits of a training step are held
MARGIN = 0.97  # of a device's memory that a plan may fill

Verdict = Literal["fits", "tight", "does not fit"]


def memory(
    architecture: Architecture, workload: Workload, *, devices: int = 1
) -> tuple[Measurement, ...]:
    """All figures of a workload; on several devices, each one's part of `peak_gib`."""
    weights = weight_bytes(architecture)
    a_sequence = cache_bytes_at(architecture, workload.decode_context)
    decode = workload.decode_batch * a_sequence
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
        (share * (likely / devices + WORKSPACE) + process) / GIB
        for share, process in zip(FRAGMENTATION, PROCESS, strict=True)
    )
    found = [
        _counted("memory_gib", counted / GIB, workload),
        _counted("cache_bytes_per_sequence", a_sequence, workload),
        _counted("paged_cache_bytes_per_sequence", paged, workload),
        _estimated("peak_gib", low, value, high, workload),
    ]
    if workload.train_batch is not None and workload.train_tokens is not None:
        kept, process = training_bytes(architecture, workload.train_batch, workload.train_tokens)
        whole = (kept + process) / devices / GIB
        spread = TRAINING_SPREAD * process / devices / GIB
        found.append(
            _estimated("train_memory_gib", whole - spread, whole, whole + spread, workload)
        )
    return tuple(found)


def verdict(peak: Measurement, memory_gb: float) -> Verdict:
    """Whether a peak fits a device of so many GB (1e9 bytes)."""
    room = MARGIN * memory_gb * 1e9 / GIB
    high = peak.value if peak.high is None else peak.high
    return "fits" if high <= room else "tight" if peak.value <= room else "does not fit"


def activations(architecture: Architecture, rows: int, sequences: int) -> int:
    """Live bytes of one forward pass: the residual stream, the widest block, the logits.

    A block holds its input and what its projections give (and, for experts, `top_k` rows a token).
    """
    widest = max(_outputs(architecture, symbol) for symbol in architecture.blocks)
    logits = sequences * architecture.vocab_size * (ACTIVATION_BYTES + LOGIT_BYTES)
    return rows * (2 * architecture.d_model + widest) * ACTIVATION_BYTES + logits


def training_bytes(architecture: Architecture, batch: int, tokens: int) -> tuple[int, int]:
    """(weights, gradients and optimizer; activations kept for the backward pass and the loss).

    A sub-block keeps its input and what its projections give, before and after the activation; a
    chunked recurrence the state in front of each chunk. Nothing is recomputed.
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


def _counted(name: str, value: float, workload: Workload) -> Measurement:
    return Measurement(
        name=name, value=value, low=value, high=value, workload=workload.name, provenance="counted"
    )


def _estimated(name: str, low: float, value: float, high: float, workload: Workload) -> Measurement:
    return Measurement(
        name=name, value=value, low=low, high=high, workload=workload.name, provenance="estimated"
    )
