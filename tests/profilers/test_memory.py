"""Counted memory, the estimated peak of an engine, and whether it fits a device."""

import pytest

from archfront.profilers.memory import GIB, MARGIN, memory, training_bytes, verdict
from archfront.profilers.report import Measurement
from archfront.search_space import published
from archfront.search_space.accounting import cache_bytes_at, paged_cache_bytes, parameters
from archfront.search_space.architecture import Architecture
from archfront.search_space.workload import WORKLOADS, Workload


def model(name: str) -> Architecture:
    return published.entry(name).architecture


def by_name(name: str, workload: str = "chat-4k", devices: int = 1) -> dict[str, Measurement]:
    found = memory(model(name), WORKLOADS[workload], devices=devices)
    return {m.name: m for m in found}


def test_a_page_grows_until_a_state_fits_as_vllm_does() -> None:
    """vllm issue 24280: pages of 672 tokens for Nemotron-Nano-9B-v2 with bf16 states."""
    nano = model("nemotron_nano_9b_v2")
    per_token = nano.blocks["*"].cache(nano.d_model).kv_elements * 2
    layers = sum(body.block.kind == "attn" for body in nano.bodies)
    one, two = (paged_cache_bytes(nano, tokens, state="bf16") for tokens in (672, 673))
    assert two - one == layers * 672 * per_token
    assert paged_cache_bytes(nano, 1, state="bf16") == one


def test_without_states_a_page_holds_sixteen_tokens() -> None:
    llama = model("llama3_8b")
    assert paged_cache_bytes(llama, 16) == cache_bytes_at(llama, 16)
    assert paged_cache_bytes(llama, 17) == cache_bytes_at(llama, 32)


def test_the_peak_is_above_the_counted_memory_and_inside_its_interval() -> None:
    for name in ("llama3_8b", "qwen3_next_80b_a3b", "deepseek_v3"):
        found = by_name(name)
        peak, counted = found["peak_gib"], found["memory_gib"]
        assert peak.low is not None
        assert peak.high is not None
        assert counted.value < peak.value < 1.3 * counted.value
        assert peak.low < peak.value < peak.high
        assert (counted.provenance, peak.provenance) == ("counted", "estimated")


def test_devices_split_weights_and_caches_but_each_has_its_process() -> None:
    one, eight = (by_name("deepseek_v3", devices=n)["peak_gib"].value for n in (1, 8))
    assert one / 8 < eight < one / 8 + 1


def test_a_peak_whose_interval_crosses_the_margin_is_tight() -> None:
    def of(value: float, high: float) -> str:
        return verdict(
            Measurement(name="peak_gib", value=value, high=high, provenance="estimated"), 80.0
        )

    room = MARGIN * 80e9 / GIB
    assert of(0.9 * room, 0.99 * room) == "fits"
    assert of(0.9 * room, 1.01 * room) == "tight"
    assert of(1.1 * room, 1.2 * room) == "does not fit"


def test_published_models_fit_the_devices_they_run_on() -> None:
    assert verdict(by_name("llama3_8b")["peak_gib"], 80) == "fits"
    assert verdict(by_name("llama3_8b", "long-128k")["peak_gib"], 141) == "fits"
    assert verdict(by_name("llama2_70b")["peak_gib"], 80) == "does not fit"
    assert verdict(by_name("deepseek_v3", devices=8)["peak_gib"], 141) == "fits"
    assert verdict(by_name("deepseek_v3", devices=8)["peak_gib"], 80) == "does not fit"


class TestTraining:
    def test_a_parameter_takes_sixteen_bytes_with_adamw(self) -> None:
        llama = model("llama3_8b")
        fixed, activations = training_bytes(llama, 1, 4096)
        assert fixed == 16 * parameters(llama).total
        assert training_bytes(llama, 2, 4096)[1] == pytest.approx(2 * activations, rel=0.01)

    def test_activations_are_near_a_published_formula(self) -> None:
        """Korthikanti et al. 2022, eq. 1: s b h (34 + 5 a s / h) per layer, without the scores,
        which flash attention does not keep, for a GELU feed-forward of 4 h in 16 bits."""
        gpt = Architecture.model_validate(
            {
                "d_model": 4096,
                "vocab_size": 1024,
                "pattern": "(*-)x24",
                "blocks": {
                    "*": {"kind": "attn", "heads": 32, "kv_heads": 32, "head_dim": 128},
                    "-": {"kind": "ffn", "width": 16_384, "activation": "gelu"},
                },
            }
        )
        _, kept = training_bytes(gpt, 1, 2048)
        published_ = 24 * 2048 * 4096 * 34
        assert 0.7 < kept / published_ < 1.3

    def test_only_a_workload_with_a_training_step_has_training_memory(self) -> None:
        assert "train_memory_gib" in by_name("llama3_8b", "train-4k")
        assert "train_memory_gib" not in by_name("llama3_8b")


def test_train_batch_and_train_tokens_go_together() -> None:
    with pytest.raises(ValueError, match="train_batch and train_tokens go together"):
        Workload(name="w", prefill_tokens=1, decode_batch=1, decode_context=1, train_batch=1)
