"""Public tables of operator timings, validated and converted to `Timing`s.

A table is a parquet file as cut from ai-dynamo/aiconfigurator (Apache-2.0): one row per operator
shape on one GPU with one software stack, `latency_us` the median over repeats. A slice is the rows
of one table, GPU, stack and version; a slice that violates a constraint below is rejected whole.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...search_space.operators import (
    AttentionDecode,
    AttentionPrefill,
    Conv,
    ConvStep,
    Experts,
    Gemm,
    MLADecode,
    MLAPrefill,
    NumberFormat,
    Operator,
    RecurrentStep,
    Scan,
)
from ..device import Device, device

Columns = Mapping[str, np.ndarray]
# GPU names of the tables that devices.yaml divides further.
_GPUS = {"a100_sxm": "a100_sxm_80gb", "rtx_pro_6000": "rtx_pro_6000_server"}
_KV: dict[str, NumberFormat] = {"bfloat16": "bf16", "fp8": "fp8", "int8": "int8"}
_SKEW = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}
# Sizes of DeepSeek's MLA and of Gated DeltaNet's heads, which the tables leave out.
_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
_EXPANDED = {"qk_head_dim": 192, "v_head_dim": 128}
_DELTA_DIM, _CONV_WIDTH = 128, 4
# (top_k, n_experts) of the Nemotron experts, which have two matrices and no gate. The tables do not
# say so; with three, their rows would exceed the memory bandwidth.
_SQUARED_RELU = {(6, 128), (22, 512)}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of one operator call on a device; `source` names the software stack.

    Calls of one `site` are the same layer at several batch sizes and lengths; a model is tested on
    sites that it was not fitted on.
    """

    device: str
    operator: Operator
    seconds: float
    source: str
    site: Hashable


def _gemm(weights: NumberFormat) -> Callable[..., Operator]:
    return lambda row: Gemm(m=row.m, n=row.n, k=row.k, weights=weights)


def _attention_prefill(row: Any) -> Operator:
    return AttentionPrefill(
        batch=row.batch,
        tokens=row.tokens,
        heads=row.num_heads,
        kv_heads=row.num_key_value_heads,
        head_dim=row.head_dim,
        v_head_dim=row.head_dim,
        window=row.window or None,
        kv=_KV[row.kv_cache_dtype],
    )


def _attention_decode(row: Any) -> Operator:
    return AttentionDecode(
        batch=row.batch,
        context=min(row.context, row.window) if row.window else row.context,
        heads=row.num_heads,
        kv_heads=row.num_key_value_heads,
        head_dim=row.head_dim,
        v_head_dim=row.head_dim,
        window=row.window or None,
        kv=_KV[row.kv_cache_dtype],
    )


def _mla_prefill(row: Any) -> Operator:
    kv = _KV[row.kv_cache_dtype]
    return MLAPrefill(batch=row.batch, tokens=row.tokens, heads=row.num_heads, kv=kv, **_EXPANDED)


def _mla_decode(row: Any) -> Operator:
    kv = _KV[row.kv_cache_dtype]
    return MLADecode(batch=row.batch, context=row.context, heads=row.num_heads, kv=kv, **_LATENT)


def _delta_prefill(row: Any) -> Operator:
    return Scan(
        batch=row.batch,
        tokens=row.tokens,
        k_heads=row.num_k_heads,
        heads=row.num_v_heads,
        k_dim=_DELTA_DIM,
        v_dim=_DELTA_DIM,
        delta=True,
    )


def _delta_decode(row: Any) -> Operator:
    dims = {"k_dim": _DELTA_DIM, "v_dim": _DELTA_DIM}
    return RecurrentStep(batch=row.batch, heads=row.num_v_heads, delta=True, **dims)


def _channels(row: Any) -> int:
    return _DELTA_DIM * (2 * row.num_k_heads + row.num_v_heads)


def _conv_prefill(row: Any) -> Operator:
    channels = _channels(row)
    return Conv(batch=row.batch, tokens=row.tokens, channels=channels, width=_CONV_WIDTH)


def _conv_decode(row: Any) -> Operator:
    return ConvStep(batch=row.batch, channels=_channels(row), width=_CONV_WIDTH)


def _experts(weights: NumberFormat) -> Callable[..., Operator]:
    return lambda row: Experts(
        rows=row.num_tokens,
        width=row.hidden_size,
        d_expert=row.d_expert,
        top_k=row.topk,
        n_experts=row.num_experts,
        matrices=2 if (row.topk, row.num_experts) in _SQUARED_RELU else 3,
        weights=weights,
        skew=_SKEW[row.distribution],
    )


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a row of a table becomes a call, and the columns that identify its site."""

    operator: Callable[..., Operator]
    site: tuple[str, ...]


_HEADS = ("num_heads", "num_key_value_heads", "head_dim")
_DELTA_HEADS = ("num_k_heads", "num_v_heads")
_EXPERT = ("hidden_size", "d_expert", "topk", "num_experts")
TABLES = {
    "gemm_bf16": Table(operator=_gemm("bf16"), site=("n", "k")),
    "gemm_fp8": Table(operator=_gemm("fp8"), site=("n", "k")),
    "gemm_nvfp4": Table(operator=_gemm("fp4"), site=("n", "k")),
    "attention_prefill": Table(operator=_attention_prefill, site=_HEADS),
    "attention_decode": Table(operator=_attention_decode, site=_HEADS),
    "mla_prefill": Table(operator=_mla_prefill, site=("num_heads",)),
    "mla_decode": Table(operator=_mla_decode, site=("num_heads",)),
    "gdn_prefill": Table(operator=_delta_prefill, site=_DELTA_HEADS),
    "gdn_decode": Table(operator=_delta_decode, site=_DELTA_HEADS),
    "conv1d_prefill": Table(operator=_conv_prefill, site=_DELTA_HEADS),
    "conv1d_decode": Table(operator=_conv_decode, site=_DELTA_HEADS),
    "moe_bf16": Table(operator=_experts("bf16"), site=_EXPERT),
    "moe_fp8_block": Table(operator=_experts("fp8"), site=_EXPERT),
}
_SLICE = ("gpu", "stack", "stack_version")
_NOT_SHAPE = {*_SLICE, "device", "latency_us"}

MIN_RANK_CORRELATION = 0.8  # of the roofline with the time
MAX_FLOOR_US = 30.0  # of the cheapest calls; beyond it the launch on the host was timed
MAX_EXPERTS_FLOOR_US = 60.0  # the same where routing, sorting, products and sum are several kernels
MAX_REPEAT_DEVIATION = 0.05  # of nine in ten repeats of a shape from their median
MAX_COPIED = 0.2  # fraction of times equal to the last digit on two devices
MAX_SLOWDOWN = 1.5  # of a version compared with another one of the same stack
MIN_SHARED = 20  # common shapes for a comparison of two slices
MAX_IMPOSSIBLE = 0.02  # fraction of rows beyond a physical bound that are dropped from a slice
TOLERANCE = 1.02  # over the data sheet, for clocks and medians


def read(folder: Path, *, report: Callable[[str], None] = print) -> list[Timing]:
    """The timings of every table in a folder, without those that `check` rejects.

    `report` gets one line for each rejected slice and for the rows dropped from a kept one.
    Needs pyarrow, the extra `archfront[fit]`.
    """
    import pyarrow.parquet

    found: list[Timing] = []
    for name in TABLES:
        if (path := folder / f"{name}.parquet").exists():
            table = pyarrow.parquet.read_table(path)
            columns = {
                column: table[column].to_numpy(zero_copy_only=False)
                for column in table.column_names
            }
            kept, lines = check(name, columns)
            for line in lines:
                report(line)
            found += timings(name, kept)
    return found


def timings(name: str, columns: Columns) -> Iterator[Timing]:
    """The rows of a table, unchecked; `name` is a key of `TABLES`."""
    table = TABLES[name]
    plain = [columns[column].tolist() for column in columns]
    for values in zip(*plain, strict=True):
        row = SimpleNamespace(**dict(zip(columns, values, strict=True)))
        yield Timing(
            device=_GPUS.get(gpu := str(row.gpu), gpu),
            operator=table.operator(row),
            seconds=row.latency_us * 1e-6,
            source=f"{row.stack} {row.stack_version}",
            site=tuple(getattr(row, column) for column in table.site),
        )


def check(name: str, columns: Columns) -> tuple[Columns, list[str]]:
    """The valid rows of a table, and a line for each slice that was rejected or lost rows.

    A slice is rejected where its rows were taken on another device or copied from one, repeats
    differ, times exceed a physical bound, the cheapest calls take as long as a launch on the host,
    times do not correlate with work, or another version of the same stack is far faster.
    """
    lines: list[str] = []
    kept: dict[tuple[str, ...], Columns] = {}
    keys = list(zip(*(columns[column].tolist() for column in _SLICE), strict=True))
    for key in sorted(set(keys)):
        found, reason, dropped = _checked_alone(name, _rows(columns, [k == key for k in keys]))
        where = f"{name}: {' '.join(key)}"
        if reason:
            lines.append(f"{where}: rejected, {reason}")
            continue
        if dropped:
            lines.append(f"{where}: {dropped}")
        kept[key] = found
    for key, reason in _checked_in_pairs(kept):
        if key in kept:
            del kept[key]
            lines.append(f"{name}: {' '.join(key)}: rejected, {reason}")
    parts = [*kept.values()] or [_rows(columns, [False] * len(keys))]
    return {c: np.concatenate([part[c] for part in parts]) for c in columns}, lines


def _rows(columns: Columns, chosen: Any) -> Columns:
    return {name: values[chosen] for name, values in columns.items()}


def _shapes(columns: Columns) -> list[tuple]:
    """The shape of each row, comparable across devices and versions."""
    names = [name for name in columns if name not in _NOT_SHAPE]
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


def _checked_alone(name: str, part: Columns) -> tuple[Columns, str, str]:
    """(valid rows of a slice, why it is rejected or "", what was dropped or "")."""
    gpu = str(part["gpu"][0])
    target = device(_GPUS.get(gpu, gpu))
    if "device" in part and (other := _other_device(set(part["device"].tolist()), target)):
        return part, f"its rows were taken on {other}", ""
    sizes = [c for c in part if c not in _NOT_SHAPE and c != "window" and part[c].dtype.kind == "i"]
    whole = np.all([part[size] > 0 for size in sizes], axis=0) & (part["latency_us"] > 0)
    if not whole.any():
        return part, "every row is empty", ""
    found, deviation = _without_repeats(_rows(part, whole))
    repeated = int(whole.sum()) - len(found["latency_us"])
    if deviation > MAX_REPEAT_DEVIATION:
        return part, f"repeats of a shape differ by {deviation:.0%}", ""
    operators = [timing.operator for timing in timings(name, found)]
    seconds = found["latency_us"] * 1e-6
    impossible = _faster_than_possible(operators, seconds, target)
    if impossible.mean() > MAX_IMPOSSIBLE:
        return part, f"{impossible.mean():.0%} of its rows are faster than {target.name} can be", ""
    floor = 1e6 * np.quantile(seconds, 0.01)
    if floor > (MAX_EXPERTS_FLOOR_US if isinstance(operators[0], Experts) else MAX_FLOOR_US):
        return part, f"no call takes less than {floor:.0f} us: the launch on the host was timed", ""
    correlation = _rank_correlation(_roofline(operators, target), seconds)
    if correlation < MIN_RANK_CORRELATION:
        return part, f"time follows work with a rank correlation of {correlation:.2f} only", ""
    counts = {
        "empty": int((~whole).sum()),
        "repeated": repeated,
        "impossible": int(impossible.sum()),
    }
    dropped = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    dropped = f"dropped {dropped} of {len(whole)} rows" if dropped else ""
    return _rows(found, ~impossible), "", dropped


def _other_device(names: set[str], target: Device) -> str:
    """A device name in the rows that is not the target's (NVIDIA GB300 is not b300_sxm), or ""."""
    chip = target.name.split("_")[0]
    others = [name for name in sorted(names) if chip not in name.lower().replace("-", " ").split()]
    return others[0] if others else ""


def _without_repeats(part: Columns) -> tuple[Columns, float]:
    """Each shape once with its median time, and the 90th percentile of relative deviations."""
    indices: dict[tuple, list[int]] = {}
    for index, shape in enumerate(_shapes(part)):
        indices.setdefault(shape, []).append(index)
    if len(indices) == len(part["latency_us"]):
        return part, 0.0
    times = [part["latency_us"][where] for where in indices.values()]
    medians = np.array([np.median(repeats) for repeats in times])
    deviations = [
        repeats.max() / median - 1
        for repeats, median in zip(times, medians, strict=True)
        if len(repeats) > 1
    ]
    once = _rows(part, [where[0] for where in indices.values()])
    return {**once, "latency_us": medians}, float(np.quantile(deviations, 0.9))


def _roofline(operators: list[Operator], target: Device) -> np.ndarray:
    return np.array(
        [
            max(call.flops / target.peak(call.format), call.bytes / (target.memory_gbps * 1e9))
            for call in operators
        ]
    )


def _faster_than_possible(
    operators: list[Operator], seconds: np.ndarray, target: Device
) -> np.ndarray:
    """Which calls exceed the peak rate, or the bandwidth with more bytes than caches explain.

    A state of the size of the cache is read and written, twice its bytes. Keys and values of 8 bits
    may be multiplied at the rate of 8 bits.
    """
    eight_bit = np.array([getattr(call, "kv", "bf16") != "bf16" for call in operators])
    rates = np.array([target.peak(call.format) for call in operators])
    rates = np.where(eight_bit, np.maximum(rates, target.peak("fp8")), rates)
    flops = np.array([call.flops for call in operators])
    bytes_ = np.array([call.bytes for call in operators])
    beyond_cache = bytes_ > 3 * target.l2_mb * 1e6
    too_much = flops / seconds > TOLERANCE * rates
    return too_much | (beyond_cache & (bytes_ / seconds > TOLERANCE * target.memory_gbps * 1e9))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; ties have one rank."""
    ranks = np.stack([np.unique(x, return_inverse=True)[1] for x in (a, b)])
    return float(np.corrcoef(ranks).min())  # symmetric, with ones on its diagonal


def _checked_in_pairs(kept: Mapping[tuple[str, ...], Columns]) -> list[tuple[tuple, str]]:
    """Slices rejected in comparison: copied from another device, or slower than another version."""
    times = {
        key: dict(zip(_shapes(part), part["latency_us"].tolist(), strict=True))
        for key, part in kept.items()
    }
    found = []
    for first, second in combinations(times, 2):
        shared = times[first].keys() & times[second].keys()
        if len(shared) < MIN_SHARED:
            continue
        ratio = np.array([times[first][shape] / times[second][shape] for shape in shared])
        if first[0] != second[0] and first[1:] == second[1:]:
            copied = float((ratio == 1).mean())
            if copied > MAX_COPIED:
                reason = f"{copied:.0%} of its times are those of {second[0]}, to the last digit"
                found.append((first, reason))
        elif first[:2] == second[:2]:
            slow = float(np.median(ratio))
            slower, other = (first, second) if slow > 1 else (second, first)
            if max(slow, 1 / slow) > MAX_SLOWDOWN:
                factor = f"{max(slow, 1 / slow):.1f} times as slow as version {other[2]}"
                found.append((slower, factor))
    return found
