"""Calibration: which operator calls are timed, how they run, the plain data, the local device."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from archfront.profilers.cost.shipped import shipped
from archfront.profilers.cost.work import cost_class
from archfront.profilers.device import device
from archfront.profilers.local_device import as_reported, host, local_device
from archfront.profilers.timing.calibrate import (
    MEMORY_FRACTION,
    POINTS,
    SHAPES,
    calibrate,
    points_of,
)
from archfront.profilers.timing.calibration import Calibration, model_of
from archfront.profilers.timing.operators import NotRunnable, run_of
from archfront.search_space.document import InputError
from archfront.search_space.operators import Gemm

CPU, GPU = torch.device("cpu"), torch.device("cuda")
H200 = device("h200_sxm")


@pytest.fixture(scope="module")
def made_up() -> Calibration:
    """An H200 that takes 1.3 times as long as the shipped model says, for every class."""
    calls = [call for name in SHAPES for call in points_of(SHAPES[name], H200, 30, GPU)]
    seconds = 1.3 * shipped().times(calls, H200).seconds
    timings = tuple(zip(calls, seconds.tolist(), strict=True))
    return Calibration(device=H200, software={"torch": "2.13"}, timings=timings)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("where", ["cuda", "cpu"])
def test_points_are_distinct_and_fit_the_device(name: str, where: str) -> None:
    here = H200 if where == "cuda" else host(1)
    found = points_of(SHAPES[name], here, max(POINTS), torch.device(where))
    assert len(set(found)) == len(found) == max(POINTS)
    assert {cost_class(call) for call in found} == {name}
    assert max(call.bytes for call in found) <= MEMORY_FRACTION * here.memory_gb * 1e9
    times = [max(call.flops / here.bf16, call.bytes / here.memory_gbps) for call in found]
    assert max(times) > 10 * min(times)


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"gemm_fp8", "attention_decode_kv8"}))
def test_every_cost_class_runs_on_a_cpu(name: str) -> None:
    call = min(points_of(SHAPES[name], host(1), 30, CPU), key=lambda call: call.flops + call.bytes)
    answer = run_of(call, CPU)()
    first = answer[0] if isinstance(answer, tuple) else answer
    assert isinstance(first, torch.Tensor)
    assert first.isfinite().all()


def test_a_call_without_a_kernel_is_not_runnable() -> None:
    with pytest.raises(NotRunnable, match="no kernel runs Gemm"):
        run_of(Gemm(m=1, n=16, k=16, weights="fp8"), CPU)


def test_a_calibration_of_this_machine_gives_a_calibrated_model() -> None:
    reported: list[tuple[str, int, int]] = []
    found, warnings = calibrate(
        "cpu", 30, names=("conv_step", "gemm_fp8"), report=lambda *row: reported.append(row)
    )
    assert warnings == ("gemm_fp8: no kernel here, 30 points left out",)
    assert reported[-1] == ("gemm_fp8", 30, 30)
    calls, seconds = zip(*found.timings, strict=True)
    times = model_of(found).times(calls, found.device)
    assert set(times.provenance) == {"calibrated"}
    assert np.median(np.abs(times.seconds / seconds - 1)) < 0.3


def test_a_slower_device_is_fitted_from_thirty_points(made_up: Calibration) -> None:
    model = model_of(made_up)
    for name in ("gemm", "scan", "scan_plain", "rows", "channel_scan", "attention_decode_kv8"):
        calls = [
            c for c in points_of(SHAPES[name], H200, 60, GPU) if c not in dict(made_up.timings)
        ]
        times = model.times(calls, H200)
        true = 1.3 * shipped().times(calls, H200).seconds
        assert set(times.provenance) == {"calibrated"}
        assert np.mean(np.abs(times.seconds / true - 1)) < 0.08, name


def test_cost_classes_that_were_not_timed_stay_as_they_were(made_up: Calibration) -> None:
    only = tuple(row for row in made_up.timings if isinstance(row[0], Gemm))
    model = model_of(replace(made_up, timings=only))
    others = [call for call, _ in made_up.timings if not isinstance(call, Gemm)]
    assert (model.times(others, H200).seconds == shipped().times(others, H200).seconds).all()


class TestPlain:
    def test_a_calibration_reads_back_as_it_was(self, made_up: Calibration) -> None:
        whole = replace(made_up, wholes=((1e-3, 8, 1.1e-3),))
        text = json.dumps(whole.plain())
        assert Calibration.from_text(text, "x.json") == whole
        assert len(text) < 200_000

    def test_device_facts_of_another_version_are_those_of_the_data_sheet(
        self, made_up: Calibration
    ) -> None:
        plain = replace(made_up, timings=()).plain()
        plain["device"] = {**plain["device"], "units": 66, "dropped": 700}
        del plain["device"]["sm"]
        found = Calibration.from_plain(plain, "x.json").device
        assert (found.units, found.sm) == (66, H200.sm)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": 2}, "x.json: schema must be 1, got 2"),
            ({"protocol": 0}, "x.json: protocol must be 1, got 0"),
            ({"device": None}, "x.json: no calibration"),
            (
                {"device": {**H200.model_dump(), "name": "h200_sxn"}},
                "x.json: device.name: unknown device 'h200_sxn'; did you mean 'h200_sxm'?",
            ),
            ({"timings": [{"operator": "gemm", "m": 1}]}, "x.json: damaged calibration"),
            (
                {"timings": [{"operator": "rows", "rows": 1, "elements": 1, "seconds": -1}]},
                "x.json: damaged calibration: seconds must be above 0, got -1.0",
            ),
            ({"timings": [{"operator": "fft", "seconds": 1}]}, "x.json: damaged calibration"),
            ({"wholes": [[1]]}, "x.json: damaged calibration"),
        ],
    )
    def test_an_invalid_calibration_is_an_error_of_one_line(
        self, made_up: Calibration, change: dict[str, object], message: str
    ) -> None:
        text = json.dumps({**replace(made_up, timings=()).plain(), **change})
        with pytest.raises(InputError) as error:
            Calibration.from_text(text, "x.json")
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
    def test_text_that_is_not_a_calibration_is_an_error(self, text: str) -> None:
        with pytest.raises(InputError, match=r"^x\.json: "):
            Calibration.from_text(text, "x.json")


class TestLocalDevice:
    def test_reported_facts_replace_the_data_sheet_with_a_warning(self) -> None:
        found, warnings = as_reported("NVIDIA H200", units=66, l2_mb=60, memory_gb=150.7)
        assert (found.name, found.units, found.memory_gb) == ("h200_sxm", 66, 150.7)
        assert warnings == ("h200_sxm: units is 66 here, 132 in the data sheet",)

    def test_the_longest_matching_name_decides(self) -> None:
        names = {
            "NVIDIA GH200 144G HBM3e": "gh200_144gb",
            "NVIDIA L40S": "l40s",
            "NVIDIA L4": "l4",
            "NVIDIA GB200": "gb200",
            "NVIDIA B200": "b200_sxm",
            "NVIDIA A100-SXM4-80GB": "a100_sxm_80gb",
            "NVIDIA H100 80GB HBM3": "h100_sxm",
        }
        assert {name: as_reported(name)[0].name for name in names} == names

    def test_an_unknown_gpu_is_an_error(self) -> None:
        with pytest.raises(InputError, match=r"no row of devices\.yaml is of the GPU 'Voodoo 2'"):
            as_reported("Voodoo 2")

    def test_a_device_that_torch_does_not_see_is_an_error(self) -> None:
        with pytest.raises(InputError, match="torch sees 0 CUDA devices here, got 'cuda:0'"):
            local_device("cuda:0")
        with pytest.raises(InputError, match="--device is cpu or cuda:N, got 'gpu'"):
            local_device("gpu")
