"""The door for public timings: every known kind of bad row is refused, sound rows are kept."""

import numpy as np
import pytest

from archfront.profilers.cost.tables import check, timings

COUNT = 60


def products(gpu: str = "h100_sxm", version: str = "1") -> dict[str, np.ndarray]:
    """Timings of products that a real card could have: two thirds of what it promises, 3 us more."""
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
    """Why the only slice is refused."""
    kept, lines = check("gemm_bf16", table)
    assert not len(kept["m"])
    (line,) = lines
    return line


def test_sound_rows_are_kept_without_a_word():
    kept, lines = check("gemm_bf16", products())
    assert lines == []
    assert len(kept["m"]) == len({t.operator for t in timings("gemm_bf16", kept)})


def test_times_of_the_hosts_launch_are_refused():
    table = products()
    assert "the host's launch" in rejected({**table, "latency_us": table["latency_us"] + 80})


def test_times_that_do_not_follow_the_work_are_refused():
    small = {**products(), "k": np.full(COUNT, 256)}
    unrelated = np.random.default_rng(1).uniform(25, 50, COUNT)
    assert "rank correlation" in rejected({**small, "latency_us": unrelated})


def test_more_than_the_memory_can_move_is_refused():
    wide = {**products("a100_sxm"), "n": np.full(COUNT, 1 << 16)}
    impossible = 1e6 * 2.0 * wide["n"] * wide["k"] / 3.4e12
    assert "faster than a100_sxm_80gb can be" in rejected({**wide, "latency_us": impossible})


def test_rows_from_another_device_are_refused():
    table = products("b300_sxm")
    assert "NVIDIA GB300" in rejected({**table, "device": np.full(COUNT, "NVIDIA GB300")})


def test_a_copy_of_another_devices_times_is_refused():
    first, second = products("b300_sxm"), products("gb300")
    kept, lines = check("gemm_bf16", joined(first, second))
    assert len(lines) == 1
    assert "to the last digit" in lines[0]
    assert len(set(kept["gpu"])) == 1


def test_a_version_far_slower_than_another_is_refused():
    old, new = products(version="0.9"), products(version="1.0")
    old["latency_us"] = 2.5 * new["latency_us"]
    kept, lines = check("gemm_bf16", joined(old, new))
    assert lines == ["gemm_bf16: h100_sxm vllm 0.9: refused, 2.5 times as slow as version 1.0"]
    assert set(kept["stack_version"]) == {"1.0"}


def test_repeats_that_differ_are_refused():
    table = products()
    again = {**table, "latency_us": 1.4 * table["latency_us"]}
    assert "repeats of a shape differ" in rejected(joined(table, again))


def test_empty_and_repeated_rows_are_dropped_alone():
    table = products()
    empty = {name: values[:1] for name, values in table.items()} | {"m": np.zeros(1, int)}
    kept, lines = check("gemm_bf16", joined(table, table, empty))
    assert lines == [
        f"gemm_bf16: h100_sxm vllm 1: dropped 1 empty, {2 * COUNT - len(kept['m'])} repeated"
        f" of {2 * COUNT + 1} rows"
    ]


def test_a_window_of_zero_in_a_runtime_without_that_sign_is_refused():
    """One slice of full attention timed as if it saw one token: far faster than its products are."""
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
def test_a_timing_carries_its_device_stack_and_layer(gpu: str):
    table = products(gpu)
    first = next(timings("gemm_bf16", table))
    assert (first.device, first.source) == (gpu, "vllm 1")
    assert first.site == (table["n"][0], table["k"][0])
    assert first.seconds == pytest.approx(1e-6 * table["latency_us"][0])
