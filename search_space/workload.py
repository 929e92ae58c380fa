"""The serving point at which a candidate's latency and memory are asked for."""

from pydantic import PositiveInt

from .document import Record


class Workload(Record):
    """Prefill of `prefill_batch` prompts, decode of `decode_batch` sequences at a context."""

    name: str
    prefill_batch: PositiveInt = 1
    prefill_tokens: PositiveInt
    decode_batch: PositiveInt
    decode_context: PositiveInt


WORKLOADS = {
    w.name: w
    for w in (
        Workload(name="chat-4k", prefill_tokens=4096, decode_batch=64, decode_context=4096),
        Workload(name="rag-32k", prefill_tokens=32_768, decode_batch=16, decode_context=32_768),
        Workload(name="long-128k", prefill_tokens=131_072, decode_batch=4, decode_context=131_072),
    )
}
