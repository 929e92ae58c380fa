"""Memory of a served architecture, counted: weights, caches, activations."""

from ..search_space.accounting import cache_bytes_at, weight_bytes
from ..search_space.architecture import Architecture
from ..search_space.workload import Workload
from .report import Measurement

GIB = 2**30
PREFILL_CHUNK = 8192  # engines prefill long prompts in pieces of about this many tokens
ACTIVATION_BYTES, LOGIT_BYTES = 2, 4


def memory(architecture: Architecture, workload: Workload) -> tuple[Measurement, ...]:
    """`memory_gib` at the larger of the workload's two points, and its parts.

    Counted, so without an interval: what an engine adds (context, workspace, page rounding,
    fragmentation: commonly 3 to 15%) is not in it.
    """
    weights = weight_bytes(architecture)
    decode = workload.decode_batch * cache_bytes_at(architecture, workload.decode_context)
    decode += activations(architecture, workload.decode_batch, workload.decode_batch)
    prefill = workload.prefill_batch * cache_bytes_at(architecture, workload.prefill_tokens)
    tokens = min(workload.prefill_batch * workload.prefill_tokens, PREFILL_CHUNK)
    prefill += activations(architecture, tokens, workload.prefill_batch)
    a_sequence = cache_bytes_at(architecture, workload.decode_context)
    return (
        _counted("memory_gib", (weights + max(decode, prefill)) / GIB, workload),
        _counted("cache_bytes_per_sequence", a_sequence, workload),
    )


def activations(architecture: Architecture, rows: int, sequences: int) -> int:
    """Live bytes of one forward pass: the residual stream, the widest block, the logits.

    A block holds its input and what its projections give (and, for experts, `top_k` rows a token).
    """
    d_model = architecture.d_model
    widest = 0
    for block in architecture.blocks.values():
        outputs = sum(
            weight.shape[0] * weight.active for weight in block.weights(d_model) if weight.role
        )
        widest = max(widest, outputs)
    logits = sequences * architecture.vocab_size * (ACTIVATION_BYTES + LOGIT_BYTES)
    return rows * (2 * d_model + widest) * ACTIVATION_BYTES + logits


def _counted(name: str, value: float, workload: Workload) -> Measurement:
    return Measurement(
        name=name, value=value, low=value, high=value, workload=workload.name, provenance="counted"
    )
