"""The cost model: trees, files, known and unknown devices, calibration."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from archfront.profilers.cost.local_fit import calibrated
from archfront.profilers.cost.model import Model, half_width_of_sum
from archfront.profilers.cost.shipped import read, shipped, write
from archfront.profilers.cost.tables import Timing
from archfront.profilers.cost.trees import exported
from archfront.profilers.device import device
from archfront.search_space.operators import (
    AttentionDecode,
    AttentionPrefill,
    Experts,
    Gemm,
    Operator,
    RecurrentStep,
    Rows,
    Scan,
)

TABLES = Path(__file__).parents[3] / "shared" / "measured_ops"
HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128, "v_head_dim": 128}
STATES = {"heads": 32, "k_dim": 128, "v_dim": 128, "delta": True}


def one_of_each(batch: int) -> list[Operator]:
    return [
        Gemm(m=batch, n=4096, k=4096),
        Gemm(m=batch, n=4096, k=4096, weights="fp8"),
        AttentionDecode(batch=batch, context=4096, **HEADS),
        AttentionPrefill(batch=batch, tokens=1024, **HEADS),
        RecurrentStep(batch=batch, **STATES),
        Scan(batch=batch, tokens=2048, k_heads=16, **STATES),
        Experts(rows=batch, width=4096, d_expert=1024, top_k=8, n_experts=128),
    ]


def products(count: int, seed: int) -> list[Gemm]:
    rng = np.random.default_rng(seed)
    sizes = 2 ** rng.uniform([0, 9, 9], [13, 14, 14], (count, 3))
    return [Gemm(m=int(m), n=64 * int(n / 64), k=64 * int(k / 64)) for m, n, k in sizes]


def test_exported_trees_predict_what_the_regressor_predicts():
    rng = np.random.default_rng(0)
    binned = rng.integers(0, 60, (3000, 6)).astype(np.float32)
    target = 0.1 * np.sin(binned[:, 0] / 9) + 0.002 * binned[:, 1] * (binned[:, 2] > 30)
    regressor = HistGradientBoostingRegressor(max_iter=80, max_leaf_nodes=31, random_state=0)
    found = exported(regressor.fit(binned, target))(binned.astype(np.uint8))
    # A leaf is rounded to a 127th of the largest: 80 of them differ by far less than timings do.
    assert np.abs(found - regressor.predict(binned)).max() < 0.004


def test_a_model_that_is_written_and_read_predicts_the_same(tmp_path: Path):
    write(shipped(), tmp_path)
    again = read(tmp_path)
    for name in ("h100_sxm", "a100_sxm_80gb", "rtx_5090"):
        calls, target = one_of_each(8), device(name)
        assert np.array_equal(
            again.times(calls, target).seconds, shipped().times(calls, target).seconds
        )


@pytest.mark.parametrize("name", ["h100_sxm", "b200_sxm", "l40s", "rtx_5090"])
@pytest.mark.parametrize("batch", [2, 8, 64, 512])  # one row in FP8 was timed slower than two
def test_twice_the_batch_is_not_much_cheaper(name: str, batch: int):
    once = shipped().times(one_of_each(batch), device(name)).seconds
    twice = shipped().times(one_of_each(2 * batch), device(name)).seconds
    assert (twice > 0.8 * once).all(), twice / once


def test_provenance_distinguishes_a_timed_device_its_family_and_others():
    calls = [Gemm(m=8, n=4096, k=4096), Rows(rows=8, elements=4096)]
    assert shipped().times(calls, device("h100_sxm")).provenance == ("fitted", "stand_in")
    assert shipped().times(calls, device("h100_pcie")).provenance == ("family", "stand_in")
    assert shipped().times(calls, device("mi300x")).provenance == ("transferred", "stand_in")


def test_less_similar_devices_have_wider_intervals():
    calls = [Gemm(m=8, n=4096, k=4096)]
    names = ("h100_sxm", "h100_pcie", "mi300x")
    widths = [shipped().times(calls, device(name)).half_width[0] for name in names]
    assert widths == sorted(widths)


def test_a_slower_device_is_fitted_from_thirty_timings():
    target = device("rtx_pro_6000_server")
    truth = 1.2 * shipped().times(products(230, seed=0), target).seconds
    timings = [
        Timing(device=target.name, operator=call, seconds=seconds, source="synthetic", site=call)
        for call, seconds in zip(products(230, seed=0), truth.tolist(), strict=True)
    ]
    fitted, rest = timings[:30], timings[30:]
    found = calibrated(shipped(), target, fitted).times([t.operator for t in rest], target)
    assert set(found.provenance) == {"calibrated"}
    errors = np.abs(found.seconds / [t.seconds for t in rest] - 1)
    assert errors.mean() < 0.03


def test_too_few_timings_change_nothing():
    target, call = device("h100_sxm"), Gemm(m=8, n=4096, k=4096)
    timing = Timing(device=target.name, operator=call, seconds=1.0, source="synthetic", site=0)
    found = calibrated(shipped(), target, [timing] * 9).times([call], target)
    assert found.seconds == shipped().times([call], target).seconds


def test_the_interval_of_a_sum_lies_between_independent_and_fully_correlated_parts():
    spent, half_width = np.array([3.0, 2.0, 1.0]), np.array([0.2, 0.3, 0.1])
    error = spent * half_width / spent.sum()
    found = half_width_of_sum(spent, half_width, ("transferred",) * 3, ("gemm", "gemm", "scan"))
    assert math.hypot(*error) < found < error.sum()


def test_a_total_is_the_sum_of_its_calls_with_the_worst_provenance():
    calls = dict.fromkeys([*one_of_each(8), Rows(rows=8, elements=4096)], 3)
    target = device("h100_sxm")
    total = shipped().total(calls, target)
    assert total.seconds == pytest.approx(3 * shipped().times(list(calls), target).seconds.sum())
    assert sum(total.by_family.values()) == pytest.approx(total.seconds)
    assert total.low < total.seconds < total.high
    assert total.provenance == "stand_in"


def test_estimates_do_not_depend_on_earlier_ones():
    fresh = Model(families=shipped().families, inflation=shipped().inflation)
    target, calls = device("h200_sxm"), one_of_each(16)
    alone = [fresh.times([call], target).seconds[0] for call in calls]
    assert alone == pytest.approx(shipped().times(calls, target).seconds.tolist())


def test_public_timings_are_within_fifteen_percent_of_the_shipped_model():
    if not TABLES.exists():
        pytest.skip(f"no public tables in {TABLES}")
    parquet = pytest.importorskip("pyarrow.parquet")
    from archfront.profilers.cost.tables import timings

    table = parquet.read_table(TABLES / "gemm_bf16.parquet")
    chosen = np.random.default_rng(0).choice(table.num_rows, 200, replace=False)
    columns = {c: table[c].to_numpy(zero_copy_only=False)[chosen] for c in table.column_names}
    errors = [
        abs(shipped().times([t.operator], device(t.device)).seconds[0] / t.seconds - 1)
        for t in timings("gemm_bf16", columns)
    ]
    assert np.mean(errors) < 0.15


def test_an_estimate_and_reading_a_calibration_import_no_library_of_the_fit():
    rooms = "archfront.profilers.cost.shipped, archfront.profilers.timing.calibration"
    heavy = "{'sklearn', 'pandas', 'pyarrow', 'torch'}"
    code = f"import sys, {rooms}; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_a_fit_without_tables_ends_with_one_line_and_code_two(tmp_path: Path):
    command = [sys.executable, "-P", "-m", "archfront.profilers.cost", "--tables"]
    ended = subprocess.run(
        [*command, str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
