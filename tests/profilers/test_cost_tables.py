"""Validation of public timings: every known kind of bad slice is rejected, valid rows are kept."""

import numpy as np
import pytest

from archfront.profilers.cost.tables import check, timings

COUNT = 60


def products(gpu: str = "h100_sxm", version: str = "1") -> dict[str, np.ndarray]:
    """Plausible timings of products: two thirds of the data sheet, and 3 us."""
    rng = np.random.default_rng(0)
    m, n, k = np.arange(1, COUNT + 1) ** 2, *(2 ** rng.integers(8, 14, (2, COUNT)))
    seconds = np.maximum(2 * m * n * k / 6.6e14, 2 * n * k / 2.2e12) + 3e-6
    return {
        "gpu": np.full(COUNT, gpu),
        "stack": np.full(COUNT, "vllm"),
        "stack_version": np.full(COUNT, version),
        "device": np.full(COUNT, f"NVIDIA {gpu.split('_')[0].upper()}"),
        "m": m,
        "n": n,
        "k": k,
        "latency_us": 1e6 * seconds * rng.uniform(0.98, 1.02, COUNT),
    }


def joined(*tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def rejected(table: dict[str, np.ndarray]) -> str:
    """Why the only slice is rejected."""
    kept, lines = check("gemm_bf16", table)
    assert not len(kept["m"])
    (line,) = lines
    return line


def test_valid_rows_are_kept_without_a_message():
    kept, lines = check("gemm_bf16", products())
    assert lines == []
    assert len(kept["m"]) == len({t.operator for t in timings("gemm_bf16", kept)})


def test_times_of_launches_on_the_host_are_rejected():
    table = products()
    assert "the launch on the host" in rejected({**table, "latency_us": table["latency_us"] + 80})


def test_times_that_do_not_correlate_with_work_are_rejected():
    small = {**products(), "k": np.full(COUNT, 256)}
    unrelated = np.random.default_rng(1).uniform(25, 50, COUNT)
    assert "rank correlation" in rejected({**small, "latency_us": unrelated})


def test_times_beyond_the_memory_bandwidth_are_rejected():
    wide = {**products("a100_sxm"), "n": np.full(COUNT, 1 << 16)}
    impossible = 1e6 * 2.0 * wide["n"] * wide["k"] / 3.4e12
    assert "faster than a100_sxm_80gb can be" in rejected({**wide, "latency_us": impossible})


def test_rows_of_another_device_are_rejected():
    table = products("b300_sxm")
    assert "NVIDIA GB300" in rejected({**table, "device": np.full(COUNT, "NVIDIA GB300")})


def test_times_copied_from_another_device_are_rejected():
    first, second = products("b300_sxm"), products("gb300")
    kept, lines = check("gemm_bf16", joined(first, second))
    assert len(lines) == 1
    assert "to the last digit" in lines[0]
    assert len(set(kept["gpu"])) == 1


def test_a_version_far_slower_than_another_is_rejected():
    old, new = products(version="0.9"), products(version="1.0")
    old["latency_us"] = 2.5 * new["latency_us"]
    kept, lines = check("gemm_bf16", joined(old, new))
    assert lines == ["gemm_bf16: h100_sxm vllm 0.9: rejected, 2.5 times as slow as version 1.0"]
    assert set(kept["stack_version"]) == {"1.0"}


def test_repeats_that_differ_are_rejected():
    table = products()
    again = {**table, "latency_us": 1.4 * table["latency_us"]}
    assert "repeats of a shape differ" in rejected(joined(table, again))


def test_empty_and_repeated_rows_are_dropped_from_a_kept_slice():
    table = products()
    empty = {name: values[:1] for name, values in table.items()} | {"m": np.zeros(1, int)}
    kept, lines = check("gemm_bf16", joined(table, table, empty))
    assert lines == [
        f"gemm_bf16: h100_sxm vllm 1: dropped 1 empty, {2 * COUNT - len(kept['m'])} repeated"
        f" of {2 * COUNT + 1} rows"
    ]


def test_a_slice_that_was_timed_with_a_window_of_one_token_is_rejected():
    """Full attention that a runtime computed as if each token saw one: faster than the peak."""
    rng = np.random.default_rng(0)
    batch, tokens = 2 ** rng.integers(0, 4, COUNT), 2 ** rng.integers(10, 14, COUNT)
    table = {
        "gpu": np.full(COUNT, "h100_sxm"),
        "stack": np.full(COUNT, "sglang"),
        "stack_version": np.full(COUNT, "0.5.10"),
        "batch": batch,
        "tokens": tokens,
        "num_heads": np.full(COUNT, 32),
        "num_key_value_heads": np.full(COUNT, 8),
        "head_dim": np.full(COUNT, 128),
        "window": np.zeros(COUNT, int),
        "kv_cache_dtype": np.full(COUNT, "bfloat16"),
        "latency_us": 5 + batch * tokens * 1e-3,
    }
    kept, lines = check("attention_prefill", table)
    assert not len(kept["batch"])
    assert "faster than h100_sxm can be" in lines[0]


@pytest.mark.parametrize("gpu", ["h100_sxm", "b200_sxm", "l40s"])
def test_a_timing_has_its_device_stack_and_site(gpu: str):
    table = products(gpu)
    first = next(timings("gemm_bf16", table))
    assert (first.device, first.source) == (gpu, "vllm 1")
    assert first.site == (table["n"][0], table["k"][0])
    assert first.seconds == pytest.approx(1e-6 * table["latency_us"][0])
