"""The local device: its row of devices.yaml, updated with what the driver reports."""

import os
import platform

import torch

from ..search_space.document import InputError
from .device import Device, device, devices

THREADS_TO_FILL_MEMORY = 8  # CPU threads that use all of the memory bandwidth
TOLERANCE = 0.1  # relative difference of a reported fact from its row that gives a warning


def local_device(where: str) -> tuple[Device, tuple[str, ...]]:
    """The device behind "cpu", "cuda" or "cuda:0", and a warning for each fact that differs.

    Raises InputError where torch has no such device, or no row describes its GPU.
    """
    try:
        found = torch.device(where)
    except RuntimeError:
        raise InputError(f"--device is cpu or cuda:N, got {where!r}") from None
    if found.type == "cpu":
        return host(torch.get_num_threads()), ()
    count = torch.cuda.device_count() if found.type == "cuda" else 0
    if (found.index or 0) >= count:
        raise InputError(f"torch sees {count} CUDA devices here, got {where!r}")
    facts = torch.cuda.get_device_properties(found)
    return as_reported(
        facts.name,
        units=facts.multi_processor_count,
        l2_mb=facts.L2_cache_size / 2**20,
        memory_gb=facts.total_memory / 1e9,
    )


def host(threads: int) -> Device:
    """`threads` threads of the "cpu" row, with the memory of this machine."""
    row = device("cpu")
    fraction = threads / row.units
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "units": threads,
        "bf16": row.bf16 * fraction,
        "int8": row.int8 and row.int8 * fraction,
        "memory_gbps": row.memory_gbps * min(1.0, threads / THREADS_TO_FILL_MEMORY),
        "memory_gb": memory / 1e9,
    }
    return row.model_copy(update=facts)


def as_reported(name: str, **facts: float) -> tuple[Device, tuple[str, ...]]:
    """The row of the GPU that reports `name`, updated with `facts`, and a warning for each that
    differs by more than `TOLERANCE`.

    Raises InputError where the `reported` of no row is part of the name.
    """
    rows = [row for row in devices().values() if row.reported and row.reported in name]
    if not rows:
        raise InputError(f"no row of devices.yaml is of the GPU {name!r}: add its data sheet there")
    row = max(rows, key=lambda row: len(row.reported or ""))
    warnings = tuple(
        f"{row.name}: {fact} is {value:g} here, {getattr(row, fact):g} in the data sheet"
        for fact, value in facts.items()
        if abs(value / getattr(row, fact) - 1) > TOLERANCE
    )
    return row.model_copy(update=facts), warnings


def local_device_name(device: torch.device) -> str:
    """The name of a local device in measurements: the GPU's, or the CPU's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()}, {torch.get_num_threads()} thread(s)"
