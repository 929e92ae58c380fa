"""Timing units: which an architecture has, the error of their sum, how a timing fails."""

import pytest

from archfront.profilers.report import Failure
from archfront.profilers.timing.measure import Composition, Timed, measure
from archfront.profilers.timing.units import timing_units
from archfront.search_space import published
from archfront.search_space.accounting import parameters
from archfront.search_space.architecture import Architecture
from archfront.search_space.operators import Point

SMALL = {
    "d_model": 128,
    "vocab_size": 512,
    "pattern": "(G-)x3*-",
    "blocks": {
        "G": {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 32, "v_head_dim": 32},
        "*": {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 32},
        "-": {"kind": "ffn", "width": 384},
    },
}
HERE = {"device": "cpu", "name": "cpu"}


def small(**fields: object) -> Architecture:
    return Architecture.model_validate(SMALL | fields)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_next_80b_a3b",
        "olmo_hybrid_7b",
        "hunyuan_a13b",
        "deepseek_v3",
        "zamba2_2.7b",
        "gpt_oss_20b",
    ],
)
def test_every_sub_block_belongs_to_one_of_few_units(name: str) -> None:
    architecture = published.entry(name).architecture
    found = timing_units(architecture)
    blocks = [unit for unit in found if unit.kind == "block"]
    assert sum(unit.count for unit in blocks) == len(architecture.symbols)
    assert len(blocks) <= 8
    assert [unit.count for unit in found if unit.kind == "embedding_and_head"] == [1]


def test_a_unit_has_the_parameters_of_its_sub_block() -> None:
    whole = small()
    table_and_norm = parameters(small(pattern=".", blocks={".": {"kind": "noop"}}))
    of_units = 0
    for unit in timing_units(whole):
        if unit.kind == "block":
            alone = parameters(unit.architecture).total - 16 * 128 - 128  # its own table and norm
            of_units += unit.count * alone
    assert of_units + table_and_norm.total == parameters(whole).total


def test_a_sub_block_in_other_formats_is_a_unit_of_its_own() -> None:
    plan = {"fp8": ["ffn.up"], "keep_first_layers": 1}
    found = timing_units(small(precision=plan))
    assert {(unit.group, unit.count) for unit in found if unit.group == "-"} == {("-", 1), ("-", 3)}


@pytest.mark.parametrize(
    "point",
    [Point(batch=2, tokens=256, context=256), Point(batch=4, tokens=1, context=512)],
    ids=["prefill", "decode"],
)
@pytest.mark.slow
def test_the_sum_of_the_units_is_near_the_whole_model(point: Point) -> None:
    whole = small(pattern="(G-)x9(*-)x3")
    timed = {}
    for unit in timing_units(whole):
        answer = measure(unit.architecture, unit.kind, point, **HERE)
        assert isinstance(answer, Timed), answer
        assert answer.low <= answer.seconds <= answer.high
        timed[unit.key] = answer
    measured = measure(whole, "whole", point, **HERE)
    assert isinstance(measured, Timed), measured
    total = sum(unit.count * timed[unit.key].seconds for unit in timing_units(whole))
    assert 0.4 < total / measured.seconds < 2.5  # whatever else the machine does


def test_out_of_memory_is_a_failure() -> None:
    huge = small(vocab_size=2**31, d_model=2**15)
    answer = measure(huge, "embedding_and_head", Point(batch=1, tokens=1, context=2), **HERE)
    assert isinstance(answer, Failure)
    assert answer.kind == "oom"


def test_a_device_that_is_not_there_is_a_failure() -> None:
    answer = measure(
        small(), "whole", Point(batch=1, tokens=1, context=2), device="cuda:7", name="?"
    )
    assert isinstance(answer, Failure)
    assert answer.kind == "crash"


def test_a_timing_beyond_its_limit_is_a_failure() -> None:
    answer = measure(small(), "whole", Point(batch=1, tokens=4, context=4), limit_s=0.1, **HERE)
    assert isinstance(answer, Failure)
    assert answer.kind == "hang"


def test_whole_models_give_the_time_of_a_layer_beside_its_blocks() -> None:
    models = [(1e-3 * n, n, 1e-3 * n + 5e-5 * n + 2e-4) for n in (4, 8, 12, 20, 32)]
    composition = Composition.fitted(models)
    assert composition.layer_s == pytest.approx(5e-5, rel=1e-3)
    assert composition.constant_s == pytest.approx(2e-4, rel=1e-3)
    assert composition.half_width == 0.01  # the least that is claimed
    few = Composition.fitted(models[:2])
    assert (few.layer_s, few.models) == (0.0, 2)
    assert few.half_width > 0.04


def test_the_same_timing_under_other_software_has_another_key() -> None:
    answers = [
        Timed(
            unit="block:x",
            device="d",
            point=Point(batch=1, tokens=1, context=2),
            seconds=1.0,
            low=1.0,
            high=1.0,
            samples=1,
            drift=0.0,
            peak_bytes=None,
            facts={"torch": version},
        )
        for version in ("2.13", "2.13", "2.12")
    ]
    assert answers[0].key == answers[1].key
    assert answers[0].key != answers[2].key
