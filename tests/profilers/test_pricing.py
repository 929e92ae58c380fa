"""Latency estimates: the cost model, timed units, several devices, drafts and training."""

import itertools
import math
import time
from dataclasses import replace

import pytest

from archfront.profilers.cluster import Cluster, cluster, splits
from archfront.profilers.device import devices
from archfront.profilers.lowering import EMBEDDING_AND_HEAD, calls
from archfront.profilers.pricing import Pricing, TargetTimings, points, tokens_per_step
from archfront.profilers.report import Measurement
from archfront.profilers.static_metrics import static_metrics
from archfront.profilers.timing.measure import Composition, Timed
from archfront.profilers.timing.units import timing_units
from archfront.search_space import published
from archfront.search_space.architecture import Architecture
from archfront.search_space.document import InputError
from archfront.search_space.operators import Experts, Gemm, Point
from archfront.search_space.plan import Plan
from archfront.search_space.workload import WORKLOADS, Workload

CHAT, H200 = WORKLOADS["chat-4k"], cluster("h200_sxm")
SMALL = {
    "d_model": 1024,
    "vocab_size": 32_000,
    "pattern": "(*-)x8",
    "blocks": {
        "*": {"kind": "attn", "heads": 16, "kv_heads": 4, "head_dim": 64},
        "-": {"kind": "ffn", "width": 4096},
    },
}


def small(**fields: object) -> Architecture:
    return Architecture.model_validate(SMALL | fields)


def model(name: str) -> Architecture:
    return published.entry(name).architecture


def latency(
    architecture: Architecture,
    target: Cluster,
    workload: Workload,
    timings: TargetTimings | None = None,
) -> tuple[Measurement, ...]:
    pricing = Pricing.for_architecture(architecture, target, timings or TargetTimings(), workload)
    return pricing.latency(architecture, workload)


def by_name(found: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {m.name: m for m in found}


@pytest.mark.parametrize("target", [name for name in devices() if name != "cpu"])
def test_every_device_has_a_plausible_estimate_with_an_interval(target: str) -> None:
    found = by_name(latency(model("llama3_8b"), cluster(target), CHAT))
    device = devices()[target]
    read = 16.06e9 + 64 * 4096 * 131_072  # weights and cache, once
    least = 1e3 * read / (device.memory_gbps * 1e9)
    decode = found["decode_ms"]
    assert least < decode.value < 4 * least
    for m in found.values():
        assert m.low is not None
        assert m.high is not None
        assert m.low < m.value < m.high
        assert (m.provenance, m.device) == ("estimated", target)


def test_more_work_never_takes_less_time() -> None:
    def ms(name: str, **point: int) -> float:
        workload = CHAT.model_copy(update=point)
        return by_name(latency(model("qwen3_next_80b_a3b"), H200, workload))[name].value

    for name, field in (
        ("decode_ms", "decode_batch"),
        ("decode_ms", "decode_context"),
        ("prefill_ms", "prefill_tokens"),
    ):
        times = [ms(name, **{field: 64 * 4**i}) for i in range(5)]
        assert all(b > 0.9 * a for a, b in itertools.pairwise(times)), (name, field)
        assert times[-1] > times[0]


def test_fp8_needs_fp8_units() -> None:
    eight = small(precision={"fp8": ["ffn.up", "ffn.down"]})
    with pytest.raises(ValueError, match="a100_sxm_80gb has no FP8 units"):
        latency(eight, cluster("a100_sxm_80gb"), CHAT)
    assert latency(eight, H200, CHAT)


def test_an_encoder_decoder_is_not_estimated() -> None:
    with pytest.raises(ValueError, match="encoder-decoder"):
        latency(model("switch_base_128"), H200, CHAT)


class TestDrafts:
    def test_accepted_drafts_make_decoding_faster_and_rejected_ones_slower(self) -> None:
        deepseek, eight = model("deepseek_v3"), cluster("8xh200_sxm")

        def ms(acceptance: float | None) -> float:
            workload = CHAT.model_copy(update={"draft_acceptance": acceptance, "decode_batch": 4})
            return by_name(latency(deepseek, eight, workload))["decode_ms"].value

        assert ms(0.9) < ms(None) < ms(0.0)

    def test_expected_tokens_of_a_step(self) -> None:
        drafting = model("deepseek_v3")
        workload = CHAT.model_copy(update={"draft_acceptance": 0.8})
        assert tokens_per_step(drafting, workload) == pytest.approx(1.8)
        assert tokens_per_step(drafting, CHAT) == 1
        assert tokens_per_step(small(), workload) == 1  # nothing to draft with


class TestTraining:
    def test_training_throughput_is_near_six_flops_per_parameter_and_token(self) -> None:
        workload = WORKLOADS["train-4k"]
        found = by_name(latency(model("llama3_8b"), H200, workload))
        rate = found["train_tokens_per_s"]
        ideal = 989.4e12 / (6 * 8.03e9)  # six FLOPs per parameter and token at the peak
        assert 0.3 * ideal < rate.value < 0.9 * ideal

    def test_a_workload_without_a_training_batch_has_no_training_throughput(self) -> None:
        assert "train_tokens_per_s" not in by_name(latency(small(), H200, CHAT))


class TestSeveralDevices:
    def test_the_device_of_an_estimate_names_its_split(self) -> None:
        found = by_name(latency(model("deepseek_v3"), cluster("8xh200_sxm"), CHAT))
        assert found["decode_ms"].device == "8xh200_sxm tp8"
        one = by_name(latency(model("deepseek_v3"), H200, CHAT))["decode_ms"].value
        assert 1.5 < one / found["decode_ms"].value < 8

    def test_a_cluster_of_one_is_the_device_itself(self) -> None:
        alone = latency(small(), cluster("1xh200_sxm"), CHAT)
        assert alone == latency(small(), H200, CHAT)

    def test_sharded_experts_process_as_many_tokens_altogether(self) -> None:
        architecture = model("deepseek_v3")
        point = Point(batch=64, tokens=1, context=4096)
        (split,) = (s for s in splits(architecture, 8) if s.tensor == 8)
        whole = [c for c in calls(architecture, point) if isinstance(c, Experts)]
        by_group = split.layer_calls(architecture, point)
        (shard,) = {c for part in by_group.values() for c in part if isinstance(c, Experts)}
        assert shard.n_experts == whole[0].n_experts // 8
        assert shard.rows * shard.top_k * 8 == whole[0].rows * whole[0].top_k

    def test_pipeline_stages_run_micro_batches(self) -> None:
        (split,) = (s for s in splits(small(), 8) if s.tensor == 1)
        by_group = split.layer_calls(small(), Point(batch=64, tokens=1, context=128))
        assert {c.m for part in by_group.values() for c in part if isinstance(c, Gemm)} == {8}
        assert str(split) == "pp8"

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("0xh200_sxm", "1 to 64 devices"),
            ("65xh200_sxm", "1 to 64 devices"),
            ("8xh200", "did you mean 'h200_sxm'"),
        ],
    )
    def test_a_bad_target_is_an_error(self, target: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            cluster(target)

    def test_an_architecture_that_no_split_divides_is_an_error(self) -> None:
        odd = small(
            pattern="(*-)x2",
            blocks=SMALL["blocks"]
            | {"*": {"kind": "attn", "heads": 14, "kv_heads": 14, "head_dim": 64}},
        )
        with pytest.raises(ValueError, match="3 devices can neither split"):
            latency(odd, cluster("3xh200_sxm"), CHAT)


class TestTimedUnits:
    POINT = Point(batch=64, tokens=1, context=4096)

    def timed(self, seconds: float, *groups: str) -> TargetTimings:
        answers = {
            (unit.key, self.POINT): Timed(
                unit=unit.key,
                device="h200_sxm",
                point=self.POINT,
                seconds=seconds,
                low=0.99 * seconds,
                high=1.01 * seconds,
                samples=20,
                drift=0.0,
                peak_bytes=None,
            )
            for unit in timing_units(small())
            if unit.group in groups
        }
        return TargetTimings(timed=answers)

    def test_timed_units_are_composed_with_the_error_of_composition(self) -> None:
        timings = self.timed(1e-4, "*", "-", EMBEDDING_AND_HEAD)
        pricing = Pricing.for_architecture(small(), H200, timings, CHAT)
        cost = pricing.decode(small(), CHAT)
        assert cost.provenance == "composed"
        assert cost.seconds == pytest.approx(17e-4)
        half = math.hypot(17e-6, Composition().half_width * 17e-4)
        assert cost.high - cost.seconds == pytest.approx(half)

    def test_a_pass_with_an_estimated_part_is_estimated(self) -> None:
        timings = self.timed(1e-4, "*", EMBEDDING_AND_HEAD)
        pricing = Pricing.for_architecture(small(), H200, timings, CHAT)
        cost = pricing.decode(small(), CHAT)
        assert cost.provenance == "estimated"
        timed = {term.group for term in cost.terms if term.provenance == "timed"}
        assert timed == {"*", EMBEDDING_AND_HEAD}
        assert sum(term.seconds for term in cost.terms) == pytest.approx(cost.seconds)

    def test_a_timed_whole_model_is_measured(self) -> None:
        timings = self.timed(1e-4, "*", "-", EMBEDDING_AND_HEAD)
        whole = replace(next(iter(timings.timed.values())), seconds=2e-3, low=1.9e-3, high=2.1e-3)
        key = f"whole:{small().key}", self.POINT
        known = by_name(latency(small(), H200, CHAT, replace(timings, timed={key: whole})))
        assert known["decode_ms"].value == pytest.approx(2.0)
        assert known["decode_ms"].provenance == "measured"
        assert known["prefill_ms"].provenance == "estimated"

    def test_the_peak_memory_of_a_whole_model_that_ran_is_reported(self) -> None:
        some = next(iter(self.timed(1e-4, "*").timed.values()))
        runs = {
            (f"whole:{small().key}", point): replace(some, point=point, peak_bytes=peak * 2**30)
            for point, peak in zip(points(CHAT).values(), (3, 2), strict=True)
        }
        plan = Plan(target="h200_sxm", workloads=(CHAT,))
        known = by_name(static_metrics(small(), plan, TargetTimings(timed=runs)))
        assert known["peak_gib"].value == 3
        assert known["peak_gib"].provenance == "measured"
        one = dict([*runs.items()][:1])
        known = by_name(static_metrics(small(), plan, TargetTimings(timed=one)))
        assert known["peak_gib"].provenance == "estimated"

    def test_timings_of_another_point_do_not_count(self) -> None:
        timings = self.timed(1e-4, "*", "-", EMBEDDING_AND_HEAD)
        other = CHAT.model_copy(update={"decode_batch": 63})
        assert (
            by_name(latency(small(), H200, other, timings))["decode_ms"].provenance == "estimated"
        )


def test_the_terms_of_a_pass_add_up() -> None:
    architecture = model("qwen3_next_80b_a3b")
    pricing = Pricing.for_architecture(architecture, H200, TargetTimings(), CHAT)
    for price in (pricing.prefill, pricing.decode):
        cost = price(architecture, CHAT)
        assert sum(term.seconds for term in cost.terms) == pytest.approx(cost.seconds)
        assert {"G", "*", "E", EMBEDDING_AND_HEAD} == {term.group for term in cost.terms}


def test_a_warm_estimate_takes_two_milliseconds() -> None:
    architecture, timings = model("qwen3_next_80b_a3b"), TargetTimings()
    latency(architecture, H200, CHAT, timings)
    begin = time.process_time()
    for _ in range(50):
        latency(architecture, H200, CHAT, timings)
    assert (time.process_time() - begin) / 50 < 2e-3


def test_an_absurd_context_is_an_error() -> None:
    with pytest.raises(ValueError, match="decode_context"):
        Workload(name="w", prefill_tokens=1, decode_batch=1, decode_context=10**9)
