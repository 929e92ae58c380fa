"""The metrics that a search may optimize, bound and show: unit, direction and description of
each."""

from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric; `better` is None where neither direction is better: it cannot be an objective."""

    name: str
    unit: str
    better: Literal["lower", "higher"] | None
    description: str
    per_workload: bool = False


METRICS = {
    m.name: m
    for m in (
        Metric(
            name="bits_per_byte",
            unit="bit/byte",
            better="lower",
            description="cross-entropy of the trained proxy model on held-out text",
        ),
        Metric(
            name="recall",
            unit="fraction",
            better="higher",
            description="accuracy of a proxy model trained on multi-query associative recall",
        ),
        Metric(
            name="recall_cache_bytes",
            unit="B",
            better=None,
            description=(
                "cache of the proxy model per sequence at the recall task's length; "
                "compare recall at equal cache bytes"
            ),
        ),
        Metric(
            name="prefill_ms",
            unit="ms",
            better="lower",
            description="latency of one prefill on the target, up to the first token's logits",
            per_workload=True,
        ),
        Metric(
            name="decode_ms",
            unit="ms",
            better="lower",
            description=(
                "latency of one decoding step of the whole batch on the target; "
                "with MTP drafts, per accepted token"
            ),
            per_workload=True,
        ),
        Metric(
            name="memory_gib",
            unit="GiB",
            better="lower",
            description=(
                "weights, caches and activations on the target, "
                "at prefill or decoding, whichever needs more"
            ),
            per_workload=True,
        ),
        Metric(
            name="peak_gib",
            unit="GiB",
            better="lower",
            description=(
                "memory that a serving engine allocates on one device: "
                "memory_gib with pages, workspace and fragmentation"
            ),
            per_workload=True,
        ),
        Metric(
            name="decode_tokens_per_s",
            unit="token/s",
            better="higher",
            description="decoding throughput on the target over all sequences of the batch",
            per_workload=True,
        ),
        Metric(
            name="train_tokens_per_s",
            unit="token/s",
            better="higher",
            description="training throughput on the target: forward, backward and optimizer step",
            per_workload=True,
        ),
        Metric(
            name="train_memory_gib",
            unit="GiB",
            better="lower",
            description="weights, gradients, AdamW state and saved activations of a training step",
            per_workload=True,
        ),
        Metric(
            name="proxy_prefill_ms",
            unit="ms",
            better="lower",
            description="forward pass of the proxy model over one training batch, local device",
        ),
        Metric(
            name="proxy_decode_ms",
            unit="ms",
            better="lower",
            description="one decoding step of the proxy model for one training batch, local device",
        ),
        Metric(
            name="proxy_step_ms",
            unit="ms",
            better=None,
            description="one training step of the proxy model, local device",
        ),
        Metric(
            name="proxy_parameters",
            unit="1",
            better=None,
            description="parameters of the proxy model",
        ),
        Metric(name="total_params", unit="1", better="lower", description="all parameters"),
        Metric(
            name="active_params",
            unit="1",
            better="lower",
            description="parameters used per token, embedding tables included",
        ),
        Metric(
            name="flops_per_token",
            unit="FLOP",
            better="lower",
            description="forward FLOPs per token at the first workload's decode context",
        ),
        Metric(
            name="weight_gib", unit="GiB", better="lower", description="weights in served precision"
        ),
        Metric(
            name="kv_bytes_per_token",
            unit="B",
            better="lower",
            description="KV-cache growth per token",
        ),
        Metric(
            name="cache_bytes_per_sequence",
            unit="B",
            better="lower",
            description="KV cache and recurrent state per sequence at the decode context",
            per_workload=True,
        ),
        Metric(
            name="paged_cache_bytes_per_sequence",
            unit="B",
            better="lower",
            description="cache_bytes_per_sequence as a paged serving engine allocates it",
            per_workload=True,
        ),
        Metric(
            name="state_bytes_per_sequence",
            unit="B",
            better="lower",
            description="recurrent and convolution state per sequence",
        ),
    )
}


@dataclass(frozen=True)
class MetricRef:
    """A metric at a workload, written `decode_ms@rag-32k`; `decode_ms` is at the first workload."""

    name: str
    workload: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name` or `name@workload`. The name is not checked."""
        name, _, workload = text.partition("@")
        return cls(name, workload or None)

    def __str__(self) -> str:
        return f"{self.name}@{self.workload}" if self.workload else self.name

    @property
    def metric(self) -> Metric:
        """The metric it names. Raises KeyError where there is none."""
        return METRICS[self.name]

    def selects(self, other: "MetricRef") -> bool:
        """Whether `other` is the same metric, and at this workload where one is given."""
        return self.name == other.name and self.workload in (None, other.workload)
