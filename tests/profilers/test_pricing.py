"""Latency before a candidate runs: of calls, of timed blocks, of several devices, of drafts."""

import itertools
import math
import time
from dataclasses import replace

import pytest

from archfront.profilers.cluster import cluster, splits
from archfront.profilers.device import devices
from archfront.profilers.lowering import calls
from archfront.profilers.pricing import (
    TargetTimings,
    best_split,
    decode_cost,
    latency,
    points,
    prefill_cost,
    tokens_a_step,
)
from archfront.profilers.report import Measurement
from archfront.profilers.static_metrics import static_metrics
from archfront.profilers.timing.measure import Composition, Timed
from archfront.profilers.timing.units import pieces
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


def told(found: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {m.name: m for m in found}


@pytest.mark.parametrize("target", [name for name in devices() if name != "cpu"])
def test_every_device_gets_an_interval_round_a_plausible_value(target: str) -> None:
    found = told(latency(model("llama3_8b"), cluster(target), CHAT))
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
        return told(latency(model("qwen3_next_80b_a3b"), H200, workload))[name].value

    for name, field in (
        ("decode_ms", "decode_batch"),
        ("decode_ms", "decode_context"),
        ("prefill_ms", "prefill_tokens"),
    ):
        times = [ms(name, **{field: 64 * 4**i}) for i in range(5)]
        assert all(b > 0.9 * a for a, b in itertools.pairwise(times)), (name, field)
        assert times[-1] > times[0]


def test_fp8_wants_units_for_it() -> None:
    eight = small(precision={"fp8": ["ffn.up", "ffn.down"]})
    with pytest.raises(ValueError, match="a100_sxm_80gb has no FP8 units"):
        latency(eight, cluster("a100_sxm_80gb"), CHAT)
    assert latency(eight, H200, CHAT)


def test_an_encoder_decoder_is_not_estimated() -> None:
    with pytest.raises(ValueError, match="encoder-decoder"):
        latency(model("switch_base_128"), H200, CHAT)


class TestDrafts:
    def test_accepted_drafts_make_a_token_cheaper_and_refused_ones_dearer(self) -> None:
        deepseek, eight = model("deepseek_v3"), cluster("8xh200_sxm")

        def ms(chance: float | None) -> float:
            workload = CHAT.model_copy(update={"draft_acceptance": chance, "decode_batch": 4})
            return told(latency(deepseek, eight, workload))["decode_ms"].value

        assert ms(0.9) < ms(None) < ms(0.0)

    def test_how_many_tokens_a_step_gives(self) -> None:
        drafting = model("deepseek_v3")
        workload = CHAT.model_copy(update={"draft_acceptance": 0.8})
        assert tokens_a_step(drafting, workload) == pytest.approx(1.8)
        assert tokens_a_step(drafting, CHAT) == 1
        assert tokens_a_step(small(), workload) == 1  # nothing to draft with


class TestTraining:
    def test_a_training_step_is_more_than_its_forward_pass(self) -> None:
        workload = WORKLOADS["train-4k"]
        found = told(latency(model("llama3_8b"), H200, workload))
        rate = found["train_tokens_per_s"]
        ideal = 989.4e12 / (6 * 8.03e9)  # six FLOPs a parameter and token at the peak
        assert 0.3 * ideal < rate.value < 0.9 * ideal

    def test_without_a_training_batch_there_is_no_such_number(self) -> None:
        assert "train_tokens_per_s" not in told(latency(small(), H200, CHAT))


class TestSeveralDevices:
    def test_a_model_of_671_billion_gets_a_split_and_says_so(self) -> None:
        found = told(latency(model("deepseek_v3"), cluster("8xh200_sxm"), CHAT))
        assert found["decode_ms"].device == "8xh200_sxm tp8"
        one = told(latency(model("deepseek_v3"), H200, CHAT))["decode_ms"].value
        assert 1.5 < one / found["decode_ms"].value < 8

    def test_one_device_is_no_cluster(self) -> None:
        alone = latency(small(), cluster("1xh200_sxm"), CHAT)
        assert alone == latency(small(), H200, CHAT)

    def test_split_experts_see_the_same_choices_altogether(self) -> None:
        architecture = model("deepseek_v3")
        point = Point(batch=64, tokens=1, context=4096)
        (split,) = (s for s in splits(architecture, 8) if s.tensor == 8)
        whole = [c for c in calls(architecture, point) if isinstance(c, Experts)]
        placed = split.layer_calls(architecture, point)
        (share,) = {c for part in placed.values() for c in part if isinstance(c, Experts)}
        assert share.n_experts == whole[0].n_experts // 8
        assert share.rows * share.top_k * 8 == whole[0].rows * whole[0].top_k

    def test_stages_hand_on_micro_batches(self) -> None:
        (split,) = (s for s in splits(small(), 8) if s.tensor == 1)
        placed = split.layer_calls(small(), Point(batch=64, tokens=1, context=128))
        assert {c.m for part in placed.values() for c in part if isinstance(c, Gemm)} == {8}
        assert str(split) == "pp8"

    @pytest.mark.parametrize(
        ("target", "said"),
        [
            ("0xh200_sxm", "1 to 64 devices"),
            ("65xh200_sxm", "1 to 64 devices"),
            ("8xh200", "did you mean 'h200_sxm'"),
        ],
    )
    def test_a_bad_target_is_refused(self, target: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            cluster(target)

    def test_what_cannot_be_shared_out_is_refused(self) -> None:
        odd = small(
            pattern="(*-)x2",
            blocks=SMALL["blocks"]
            | {"*": {"kind": "attn", "heads": 14, "kv_heads": 14, "head_dim": 64}},
        )
        with pytest.raises(ValueError, match="3 devices can neither share"):
            latency(odd, cluster("3xh200_sxm"), CHAT)


class TestTimedBlocks:
    POINT = Point(batch=64, tokens=1, context=4096)

    def timed(self, seconds: float, *kept: str) -> TargetTimings:
        answers = {
            (piece.key, self.POINT): Timed(
                unit=piece.key,
                device="h200_sxm",
                point=self.POINT,
                seconds=seconds,
                low=0.99 * seconds,
                high=1.01 * seconds,
                samples=20,
                drift=0.0,
                peak_bytes=None,
            )
            for piece in pieces(small())
            if piece.symbol in kept
        }
        return TargetTimings(timed=answers)

    def test_timed_blocks_are_composed_with_the_error_of_composition(self) -> None:
        timings = self.timed(1e-4, "*", "-", "ends")
        cost = decode_cost(small(), H200, CHAT, timings, best_split(small(), H200, CHAT, timings))
        assert cost.provenance == "composed"
        assert cost.seconds == pytest.approx(17e-4)
        half = math.hypot(17e-6, Composition().spread * 17e-4)
        assert cost.high - cost.seconds == pytest.approx(half)

    def test_the_worst_part_labels_the_whole(self) -> None:
        timings = self.timed(1e-4, "*", "ends")
        split = best_split(small(), H200, CHAT, timings)
        cost = decode_cost(small(), H200, CHAT, timings, split)
        assert cost.provenance == "estimated"
        assert {share.place: share.known for share in cost.shares if share.known == "timed"} == {
            "*": "timed",
            "ends": "timed",
        }
        assert sum(share.seconds for share in cost.shares) == pytest.approx(cost.seconds)

    def test_a_timed_whole_model_is_measured(self) -> None:
        timings = self.timed(1e-4, "*", "-", "ends")
        whole = replace(next(iter(timings.timed.values())), seconds=2e-3, low=1.9e-3, high=2.1e-3)
        key = f"whole:{small().key}", self.POINT
        known = told(latency(small(), H200, CHAT, replace(timings, timed={key: whole})))
        assert known["decode_ms"].value == pytest.approx(2.0)
        assert known["decode_ms"].provenance == "measured"
        assert known["prefill_ms"].provenance == "estimated"

    def test_a_whole_model_that_ran_tells_its_peak(self) -> None:
        some = next(iter(self.timed(1e-4, "*").timed.values()))
        runs = {
            (f"whole:{small().key}", point): replace(some, point=point, peak_bytes=peak * 2**30)
            for point, peak in zip(points(CHAT).values(), (3, 2), strict=True)
        }
        plan = Plan(target="h200_sxm", workloads=(CHAT,))
        known = told(static_metrics(small(), plan, TargetTimings(timed=runs)))
        assert known["peak_gib"].value == 3
        assert known["peak_gib"].provenance == "measured"
        one = dict([*runs.items()][:1])
        known = told(static_metrics(small(), plan, TargetTimings(timed=one)))
        assert known["peak_gib"].provenance == "estimated"

    def test_timings_of_another_point_do_not_count(self) -> None:
        timings = self.timed(1e-4, "*", "-", "ends")
        other = CHAT.model_copy(update={"decode_batch": 63})
        assert told(latency(small(), H200, other, timings))["decode_ms"].provenance == "estimated"


def test_every_share_of_a_pass_adds_up() -> None:
    architecture, timings = model("qwen3_next_80b_a3b"), TargetTimings()
    split = best_split(architecture, H200, CHAT, timings)
    for price in (prefill_cost, decode_cost):
        cost = price(architecture, H200, CHAT, timings, split)
        assert sum(share.seconds for share in cost.shares) == pytest.approx(cost.seconds)
        assert {"G", "*", "E", "ends"} == {share.place for share in cost.shares}


def test_a_warm_estimate_takes_two_milliseconds() -> None:
    architecture, timings = model("qwen3_next_80b_a3b"), TargetTimings()
    latency(architecture, H200, CHAT, timings)
    begin = time.process_time()
    for _ in range(50):
        latency(architecture, H200, CHAT, timings)
    assert (time.process_time() - begin) / 50 < 2e-3


def test_a_workload_beyond_any_device_is_refused() -> None:
    with pytest.raises(ValueError, match="decode_context"):
        Workload(name="w", prefill_tokens=1, decode_batch=1, decode_context=10**9)
