"""Metrics and references to them."""

import pytest

from archfront.search_space.metrics import METRICS, MetricRef


@pytest.mark.parametrize("text", ["decode_ms", "decode_ms@rag-32k"])
def test_a_reference_is_written_as_it_is_read(text: str) -> None:
    assert str(MetricRef.parse(text)) == text


def test_a_reference_without_a_workload_selects_every_workload() -> None:
    at_chat = MetricRef("decode_ms", "chat-4k")
    assert MetricRef.parse("decode_ms").selects(at_chat)
    assert MetricRef.parse("decode_ms@chat-4k").selects(at_chat)
    assert not MetricRef.parse("decode_ms@rag-32k").selects(at_chat)
    assert not MetricRef.parse("prefill_ms").selects(at_chat)


def test_a_reference_names_a_metric() -> None:
    assert MetricRef.parse("decode_ms@chat-4k").metric is METRICS["decode_ms"]
