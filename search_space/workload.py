"""Workloads: the points at which latency and memory of a candidate are estimated."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from .document import Record

MAX_TOKENS, MAX_BATCH = 2**27, 2**20  # beyond any device
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Batch = Annotated[int, Field(ge=1, le=MAX_BATCH)]


class Workload(Record):
    """A point at which latency and memory are estimated: prefill, decoding, and with `train_batch`
    a training step.

    Latencies are those of a step, not of a loaded server.
    """

    name: str
    """Name that metrics refer to, as in `decode_ms@name`."""
    prefill_batch: Batch = 1
    """Prompts per prefill."""
    prefill_tokens: Tokens
    """Tokens of a prompt."""
    decode_batch: Batch
    """Sequences per decoding step."""
    decode_context: Tokens
    """Tokens of context of each sequence in decoding."""
    train_batch: Batch | None = None
    """Sequences per training step."""
    train_tokens: Tokens | None = None
    """Tokens of a training sequence."""
    draft_acceptance: float | None = Field(default=None, ge=0, le=1)
    """Probability that a token drafted by an MTP module is accepted; decoding then verifies one
    draft per module."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if (self.train_batch is None) != (self.train_tokens is None):
            raise ValueError(
                "train_batch and train_tokens go together, got "
                f"train_batch={self.train_batch}, train_tokens={self.train_tokens}"
            )
        return self


WORKLOADS = {
    w.name: w
    for w in (
        Workload(name="chat-4k", prefill_tokens=4096, decode_batch=64, decode_context=4096),
        Workload(name="rag-32k", prefill_tokens=32_768, decode_batch=16, decode_context=32_768),
        Workload(name="long-128k", prefill_tokens=131_072, decode_batch=4, decode_context=131_072),
        Workload(
            name="train-4k",
            prefill_tokens=4096,
            decode_batch=64,
            decode_context=4096,
            train_batch=8,
            train_tokens=4096,
        ),
    )
}
