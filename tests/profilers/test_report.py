"""Measurements by provenance, and reports as plain data."""

import pytest
import torch

from archfront.profilers.out_of_memory import is_out_of_memory
from archfront.profilers.report import Failure, Measurement, Report


def test_a_counted_number_is_its_own_interval():
    counted = Measurement.counted("total_params", 3e10)
    assert (counted.low, counted.high) == (3e10, 3e10)
    assert (counted.provenance, counted.device, counted.rung) == ("counted", None, None)


def test_an_estimate_has_the_interval_and_the_device_it_is_for():
    estimated = Measurement.estimated(
        "decode_ms", 2.0, 1.5, 3.0, workload="chat-4k", device="h200_sxm"
    )
    assert (estimated.low, estimated.value, estimated.high) == (1.5, 2.0, 3.0)
    assert (estimated.provenance, estimated.device) == ("estimated", "h200_sxm")
    assert estimated.label == "decode_ms@chat-4k"


def test_a_measured_number_has_no_interval_unless_one_is_given():
    measured = Measurement.measured("recall", 0.5, device="cpu", rung=1)
    assert (measured.low, measured.high, measured.rung) == (None, None, 1)
    assert measured.provenance == "measured"


@pytest.mark.parametrize("rung", [0, 2])
def test_a_report_and_a_failure_are_equal_after_conversion_to_plain_data_and_back(rung: int):
    measurements = (
        Measurement.counted("total_params", 3e10),
        Measurement.measured("recall", 0.5, device="cpu", rung=rung),
    )
    report = Report(key="k", measurements=measurements, facts={"seed": "0"}, rung=rung)
    assert Report.from_plain(report.plain()) == report
    assert "rung" not in report.plain()["measurements"][0]
    failure = Failure(key="k", stage="train", kind="nan", reason="step 3")
    assert Failure.from_plain(failure.plain()) == failure


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_every_kind_of_out_of_memory_error_is_recognized(error: BaseException):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("can't allocate memory")]
)
def test_another_error_is_not_one_of_memory(error: BaseException):
    assert not is_out_of_memory(error)


def test_torchs_own_cpu_allocator_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
