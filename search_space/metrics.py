"""The quantities a search may optimize, bound and show, each with its unit and its better side."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """`better` is None where less or more is a matter of taste: such a metric is no objective."""

    name: str
    unit: str
    better: Literal["lower", "higher"] | None
    meaning: str
    per_workload: bool = False


METRICS = {
    m.name: m
    for m in (
        Metric(
            name="bits_per_byte",
            unit="bit/byte",
            better="lower",
            meaning="cross-entropy of the trained twin on held-out text",
        ),
        Metric(
            name="recall",
            unit="fraction",
            better="higher",
            meaning="answers right in multi-query associative recall, twin trained on the task",
        ),
        Metric(
            name="recall_cache_bytes",
            unit="B",
            better=None,
            meaning="what the twin caches a sequence at the recall task's length: compare recall at equal bytes",
        ),
        Metric(
            name="prefill_ms",
            unit="ms",
            better="lower",
            meaning="one prefill on the target, to the first token's logits",
            per_workload=True,
        ),
        Metric(
            name="decode_ms",
            unit="ms",
            better="lower",
            meaning="one decoding step of the whole batch on the target; with MTP drafts, for a token",
            per_workload=True,
        ),
        Metric(
            name="memory_gib",
            unit="GiB",
            better="lower",
            meaning="weights, caches and activations on the target at the workload's larger point",
            per_workload=True,
        ),
        Metric(
            name="peak_gib",
            unit="GiB",
            better="lower",
            meaning="the same as an engine takes it on one device: pages, workspace, fragmentation",
            per_workload=True,
        ),
        Metric(
            name="decode_tokens_per_s",
            unit="token/s",
            better="higher",
            meaning="tokens of all sequences that decoding steps of the workload give",
            per_workload=True,
        ),
        Metric(
            name="train_tokens_per_s",
            unit="token/s",
            better="higher",
            meaning="forward, backward and optimizer of a training step on the target",
            per_workload=True,
        ),
        Metric(
            name="train_memory_gib",
            unit="GiB",
            better="lower",
            meaning="weights, gradients, AdamW and kept activations of a training step",
            per_workload=True,
        ),
        Metric(
            name="proxy_prefill_ms",
            unit="ms",
            better="lower",
            meaning="forward pass of the twin over one training batch, local device",
        ),
        Metric(
            name="proxy_decode_ms",
            unit="ms",
            better="lower",
            meaning="one decoding step of the twin for one training batch, local device",
        ),
        Metric(
            name="proxy_step_ms",
            unit="ms",
            better=None,
            meaning="one training step of the twin, local device",
        ),
        Metric(
            name="proxy_parameters", unit="1", better=None, meaning="parameters of the trained twin"
        ),
        Metric(name="total_params", unit="1", better="lower", meaning="all parameters"),
        Metric(
            name="active_params",
            unit="1",
            better="lower",
            meaning="parameters a token meets, tables included",
        ),
        Metric(
            name="flops_per_token",
            unit="FLOP",
            better="lower",
            meaning="forward FLOPs of a token at the first workload's decode context",
        ),
        Metric(name="weight_gib", unit="GiB", better="lower", meaning="weights as served"),
        Metric(name="kv_bytes_per_token", unit="B", better="lower", meaning="cache growth a token"),
        Metric(
            name="cache_bytes_per_sequence",
            unit="B",
            better="lower",
            meaning="KV and state of a sequence at the decode context",
            per_workload=True,
        ),
        Metric(
            name="paged_cache_bytes_per_sequence",
            unit="B",
            better="lower",
            meaning="the same as a paged engine sets it aside",
            per_workload=True,
        ),
        Metric(
            name="state_bytes_per_sequence",
            unit="B",
            better="lower",
            meaning="recurrent and convolution state",
        ),
    )
}


def split(name: str) -> tuple[str, str | None]:
    """`decode_ms@rag-32k` is the metric decode_ms at the workload rag-32k."""
    metric, _, workload = name.partition("@")
    return metric, workload or None
