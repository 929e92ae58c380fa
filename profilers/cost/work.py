"""The work of operator calls on a device, as arrays: terms of a roofline, and features.

    t = max(hypot(flops / (peak * compute), bytes / (bandwidth * memory)),
            serial steps * waves * step) + overhead

This is the roofline model (Williams, Waterman and Patterson, CACM 2009) with two changes. A kernel
overlaps computing and moving data only in part where both take long: hypot fits every cost class
better than the maximum. Bytes that fit into the L2 cache move at the cache's rate, which scales
with the number of units and not with the memory bandwidth. Serial steps are those of a chunked
recurrence, where a chunk waits for the one before it; waves are the states that one unit processes
in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ...search_space.operators import (
    AttentionDecode,
    AttentionPrefill,
    ChannelScan,
    Conv,
    ConvStep,
    Experts,
    Gemm,
    IndexScores,
    MLADecode,
    MLAPrefill,
    Operator,
    RecurrentStep,
    Rows,
    Scan,
    SelectedAttention,
    SequentialGemm,
)
from ..device import Device

Columns = Mapping[str, np.ndarray]
VECTOR_SLOWDOWN = 16  # of products outside the tensor cores, about


@dataclass(frozen=True, kw_only=True)
class Work:
    """The terms of n calls on one device, float64 [n].

    Times are in seconds at the rates of the data sheet.
    """

    flops_s: np.ndarray
    bytes_s: np.ndarray
    cached_s: np.ndarray  # of the same bytes at 1 GB/s per unit
    steps: np.ndarray  # serial steps times waves
    cached: np.ndarray  # from 1 where all bytes fit into the L2 cache to 0 where none do

    def __getitem__(self, chosen: np.ndarray) -> "Work":
        return Work(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence["Work"]) -> "Work":
        """The terms of the calls of several works, concatenated."""
        return cls(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            }
        )


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Fractions of the data sheet that a cost class attains, and its fixed costs."""

    compute: float
    memory: float
    overhead_us: float
    step_us: float
    cache_gbps: float  # per unit

    def log(self) -> np.ndarray:
        """The constants in log, in the order of the fields, [5]."""
        return np.log([getattr(self, field.name) for field in fields(self)])

    @classmethod
    def from_log(cls, values: np.ndarray) -> "Constants":
        """The inverse of `log`."""
        names = [field.name for field in fields(cls)]
        return cls(**dict(zip(names, np.exp(values).tolist(), strict=True)))


def work_of(calls: Sequence[Operator], device: Device) -> Work:
    """The terms of calls on a device, from their FLOPs, bytes and serial steps."""
    bytes_ = np.array([call.bytes for call in calls])
    resident = np.array([call.bytes / (2 if isinstance(call, _IN_PLACE) else 1) for call in calls])
    waves = np.ceil(np.array([call.lanes for call in calls]) / device.units)
    return Work(
        flops_s=np.array([tensor_core_flops(call) / device.peak(call.format) for call in calls]),
        bytes_s=bytes_ / (device.memory_gbps * 1e9),
        cached_s=bytes_ / (device.units * 1e9),
        steps=np.array([call.serial_steps for call in calls]) * waves,
        cached=1 / (1 + (resident / (device.l2_mb * 1e6)) ** 4),
    )


def tensor_core_flops(call: Operator) -> float:
    """The FLOPs that tensor cores would do in the time of a call's."""
    return call.flops * (VECTOR_SLOWDOWN if isinstance(call, ChannelScan) else 1)


def seconds(work: Work, constants: Constants) -> np.ndarray:
    """The time of the calls by the roofline alone, in seconds, [n]."""
    cached = work.cached * work.cached_s / constants.cache_gbps
    moved = cached + (1 - work.cached) * work.bytes_s / constants.memory
    busy = np.hypot(work.flops_s / constants.compute, moved)
    waited = work.steps * constants.step_us * 1e-6
    return np.maximum(busy, waited) + constants.overhead_us * 1e-6


def cost_class(call: Operator) -> str:
    """The class of calls that share constants: the operator family, with "_plain" for recurrences
    without the delta rule and "_kv8" for 8-bit caches, which other kernels compute."""
    if isinstance(call, Scan | RecurrentStep) and not call.delta:
        return f"{call.family}_plain"
    return f"{call.family}_kv8" if _eight_bit_cache(call) else call.family


def _eight_bit_cache(call: Operator) -> bool:
    return getattr(call, "kv", "bf16") != "bf16"


def features(calls: Sequence[Operator], work: Work, device: Device) -> np.ndarray:
    """The inputs of the residual, float32 [n, f], for calls of one operator family.

    Sizes are logarithms to base 2, all others ratios: of work to the rates of the device, of
    parallel blocks to its units, of padded to useful work. Times change smoothly along the first
    `SMOOTH[kind]` columns.
    """
    kind = type(calls[0])
    columns = {
        field.name: np.array([getattr(call, field.name) for call in calls], dtype=float)
        for field in fields(kind)
        if field.name not in _FORMATS
    }
    flops, bytes_ = np.log2(work.flops_s + 1e-12), np.log2(work.bytes_s)
    common = [
        [_eight_bit_cache(call) for call in calls],
        flops,
        bytes_,
        flops - bytes_,
        work.cached,
    ]
    return np.column_stack([*common, *SHAPES[kind](columns, device)]).astype(np.float32)


_FORMATS = {"weights", "kv"}
_IN_PLACE = (RecurrentStep, ConvStep)  # read and write the same bytes: half of them occupy L2
_TILES = np.array([(64, 64), (128, 64), (64, 128), (128, 128), (128, 256), (256, 128)])
_SPLITS = np.array([1, 2, 4, 8, 16])


def _log(*sizes: np.ndarray) -> list[np.ndarray]:
    return [np.log2(size) for size in sizes]


def _filling(parts: np.ndarray, units: int) -> list[np.ndarray]:
    """The waves of parallel blocks, in log, and the mean occupancy of a wave."""
    waves = np.ceil(parts / units)
    return [np.log2(parts / units), parts / (waves * units)]


def _gemm(v: Columns, device: Device) -> list[np.ndarray]:
    """Features of six tile sizes: waves, padding, and time with and without split-k."""
    m, n, k = (v[name][:, None] for name in "mnk")
    tile_m, tile_n = _TILES.T
    tiles = np.ceil(m / tile_m) * np.ceil(n / tile_n)
    depth, fill = _filling(tiles, device.units)
    area = tile_m * tile_n
    roof = np.maximum(2 * m * n * k / device.peak("bf16"), 2 * n * k / (device.memory_gbps * 1e9))

    split_waves = np.ceil(tiles[..., None] * _SPLITS / device.units)
    unit_rate = device.peak("bf16") / device.units
    a_part = area[:, None] * np.ceil(k[..., None] / _SPLITS) * 2 / unit_rate
    joined = (_SPLITS > 1) * (1e-6 + 4 * _SPLITS * (m * n)[..., None] / (device.memory_gbps * 1e9))
    times = split_waves * a_part + joined
    best = times.reshape(len(m), -1)
    rows = v["m"]
    return [
        *_log(v["m"], v["n"], v["k"], v["n"] / v["k"]),
        *depth.T,
        *fill.T,
        *(m * n / (tiles * area)).T,
        *np.log2(times[..., 0] / roof).T,
        np.log2(best.min(axis=1) / roof[:, 0]),
        best.argmin(axis=1),
        np.log2(2 * v["n"] * v["k"] / (device.l2_mb * 1e6)),
        rows % 8,
        np.log2(np.gcd(rows.astype(int), 256)),
        rows / (64 * np.ceil(rows / 64)),
    ]


def _attention_prefill(v: Columns, device: Device) -> list[np.ndarray]:
    batch, tokens, heads, kv = v["batch"], v["tokens"], v["heads"], v["kv_heads"]
    blocks, group = np.ceil(tokens / 128), heads / kv
    width = np.minimum(np.nan_to_num(v["window"], nan=np.inf), tokens)
    seen = width - width * (width - 1) / (2 * tokens)
    return [
        *_log(batch, tokens, heads, kv, group, v["head_dim"], v["v_head_dim"], width),
        ~np.isnan(v["window"]),
        *_log(batch * tokens, tokens / width),
        *_log(
            (seen + 64 + 64 / group) / seen, (seen + 128) / seen
        ),  # tiles across the edge of the mask
        *_filling(batch * heads * blocks, device.units),
        *_filling(batch * kv * np.ceil(tokens * group / 128), device.units),
        tokens / (128 * blocks),
    ]


def _attention_decode(v: Columns, device: Device) -> list[np.ndarray]:
    batch, context, kv = v["batch"], v["context"], v["kv_heads"]
    group = v["heads"] / kv
    window = np.nan_to_num(v["window"], nan=2.0**20)
    return [
        *_log(batch, context, v["heads"], kv, group, v["head_dim"], v["v_head_dim"], window),
        *_log(batch * context, batch * context * kv),
        *_filling(batch * kv, device.units),
        *_filling(batch * kv * np.ceil(context / 256), device.units),
        group / (16 * np.ceil(group / 16)),
    ]


def _mla_prefill(v: Columns, device: Device) -> list[np.ndarray]:
    batch, tokens, heads = v["batch"], v["tokens"], v["heads"]
    return [
        *_log(batch, tokens, heads, batch * tokens, batch * heads),
        *_filling(batch * heads * np.ceil(tokens / 128), device.units),
    ]


def _mla_decode(v: Columns, device: Device) -> list[np.ndarray]:
    batch, context, heads = v["batch"], v["context"], v["heads"]
    return [
        *_log(batch, context, heads, batch * context, batch * heads),
        *_filling(batch, device.units),
        *_filling(batch * np.ceil(context / 256), device.units),
    ]


def _scan(v: Columns, device: Device) -> list[np.ndarray]:
    batch, tokens, heads = v["batch"], v["tokens"], v["heads"]
    chunks = np.ceil(tokens / 64)
    return [
        *_log(batch, tokens, v["k_heads"], heads, v["k_dim"], v["v_dim"], batch * tokens),
        *_log(heads / v["k_heads"], batch * heads),
        *_filling(batch * heads, device.units),
        *_filling(batch * heads * chunks, device.units),
        tokens / (64 * chunks),
    ]


def _recurrent_step(v: Columns, device: Device) -> list[np.ndarray]:
    lanes = v["batch"] * v["heads"]
    return [
        *_log(v["batch"], v["heads"], v["k_dim"], v["v_dim"]),
        *_filling(lanes, device.units),
    ]


def _channels(v: Columns, device: Device) -> list[np.ndarray]:
    tokens = v.get("tokens", np.ones_like(v["batch"]))
    return [
        *_log(v["batch"], tokens, v["channels"], v["batch"] * tokens),
        *_filling(v["batch"] * np.ceil(v["channels"] / 128) * np.ceil(tokens / 8), device.units),
    ]


def _experts(v: Columns, device: Device) -> list[np.ndarray]:
    rows, count, width, inner = v["rows"], v["n_experts"], v["width"], v["d_expert"]
    chosen = rows * v["top_k"]
    met = np.minimum(count, chosen)
    load = chosen / met
    found = [
        *_log(rows, width, inner, v["top_k"], count, chosen, chosen / count, width / inner),
        v["skew"],
        v["matrices"],
        *_log(count * inner * width, met),
    ]
    for tile in (16, 64, 128):
        blocks = met * np.ceil(load / tile)
        found += [chosen / (blocks * tile), *_filling(blocks * np.ceil(inner / 64), device.units)]
        found += _filling(blocks * np.ceil(width / 128), device.units)
    return [*found, np.log2(np.gcd(inner.astype(int), 256))]  # odd widths rule out wide loads


def _plain(v: Columns, device: Device) -> list[np.ndarray]:
    return []


SHAPES: dict[type[Operator], Callable[[Columns, Device], list[np.ndarray]]] = {
    Gemm: _gemm,
    AttentionPrefill: _attention_prefill,
    AttentionDecode: _attention_decode,
    MLAPrefill: _mla_prefill,
    MLADecode: _mla_decode,
    Scan: _scan,
    RecurrentStep: _recurrent_step,
    Conv: _channels,
    ConvStep: _channels,
    ChannelScan: _channels,
    Experts: _experts,
    IndexScores: _plain,
    SelectedAttention: _plain,
    Rows: _plain,
    SequentialGemm: _plain,
}

# The number of columns that are smooth: the flag of the cache format, the four terms, and the sizes
# that the features of a kind begin with.
SMOOTH: dict[type[Operator], int] = {
    kind: 5 + sizes
    for kind, sizes in {
        Gemm: 4,
        AttentionPrefill: 8,
        AttentionDecode: 8,
        MLAPrefill: 3,
        MLADecode: 3,
        Scan: 4,
        RecurrentStep: 2,
        Conv: 3,
        ConvStep: 3,
        ChannelScan: 3,
        Experts: 10,
        IndexScores: 0,
        SelectedAttention: 0,
        Rows: 0,
        SequentialGemm: 0,
    }.items()
}
