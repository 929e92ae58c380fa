"""The estimate of latency without the device: three constants an operator class.

    t = max(flops / (peak * compute), bytes / (bandwidth * memory)) + overhead

An architecture and a workload become a list of operator calls; their times add up. The constants
were fitted (log space, soft L1) on 180,000 public operator timings of six data-centre GPUs, pooled;
`p90` is the relative error that 90% of those timings stay within. It bounds the estimate: errors
add up within a class, as one wrong constant would make them, and in quadrature between classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from ..search_space.accounting import bytes_of, kv_bytes, mean_visible, placed_weights, visible
from ..search_space.architecture import AnyBlock, Architecture, Precision
from ..search_space.blocks.attention import Attention
from ..search_space.blocks.block import Weight
from ..search_space.blocks.feed_forward import FeedForward
from ..search_space.blocks.gated_deltanet import GatedDeltaNet
from ..search_space.blocks.mamba2 import Mamba2
from ..search_space.blocks.mla import Mla
from ..search_space.blocks.moe import Moe
from ..search_space.workload import Workload
from .device import Device
from .report import Measurement

CHUNK = 64  # tokens of one step of a chunked recurrence
ACTIVATION_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class OperatorClass:
    """Attained shares of peak FLOP/s and bandwidth, launch overhead, and the error of the fit."""

    compute: float
    memory: float
    overhead_us: float
    p90: float
    step_us: float = 0.0  # one sequential chunk of a recurrence


CLASSES = {
    "gemm": OperatorClass(compute=0.739, memory=0.745, overhead_us=3.05, p90=0.38),
    "gemm_fp8": OperatorClass(compute=0.462, memory=0.339, overhead_us=7.02, p90=0.74),
    "attention_prefill": OperatorClass(compute=0.455, memory=0.213, overhead_us=12.3, p90=0.45),
    "attention_decode": OperatorClass(compute=0.670, memory=0.663, overhead_us=11.9, p90=0.62),
    "mla_prefill": OperatorClass(compute=0.456, memory=0.423, overhead_us=16.7, p90=0.40),
    "mla_decode": OperatorClass(compute=0.598, memory=0.707, overhead_us=12.6, p90=0.35),
    "scan": OperatorClass(compute=0.670, memory=0.412, overhead_us=16.6, p90=0.60, step_us=2.51),
    "recurrent_step": OperatorClass(compute=0.670, memory=0.872, overhead_us=3.75, p90=0.20),
    "conv": OperatorClass(compute=0.670, memory=0.391, overhead_us=2.96, p90=0.48),
    "experts": OperatorClass(compute=0.282, memory=0.855, overhead_us=26.6, p90=0.59),
    "experts_fp8": OperatorClass(compute=0.154, memory=0.810, overhead_us=36.8, p90=0.44),
    # Norms, activations, lookups: no timings at hand, taken as the convolution's decode form.
    "rows": OperatorClass(compute=0.670, memory=0.700, overhead_us=1.92, p90=0.50),
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator call: its class, its work, and how many chunks run one after another."""

    operator: str
    flops: float
    bytes: float
    fp8: bool = False
    serial_chunks: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one forward pass handles: `batch` sequences, `tokens` new ones each, at `context`."""

    batch: int
    tokens: int
    context: int

    @property
    def decode(self) -> bool:
        return self.tokens == 1

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


def latency(
    architecture: Architecture, device: Device, workload: Workload
) -> tuple[Measurement, ...]:
    """Estimated `prefill_ms` and `decode_ms` of a workload, each with its 90% interval.

    Raises ValueError when the plan needs FP8 and the device has none.
    """
    if device.fp8 is None and any(placed.fp8 for placed in placed_weights(architecture)):
        raise ValueError(f"{device.name} has no FP8 units, the precision plan needs them")
    points = {
        "prefill_ms": Point(
            batch=workload.prefill_batch,
            tokens=workload.prefill_tokens,
            context=workload.prefill_tokens,
        ),
        "decode_ms": Point(batch=workload.decode_batch, tokens=1, context=workload.decode_context),
    }
    found = []
    for name, point in points.items():
        by_class: dict[str, float] = {}
        for call in calls(architecture, point):
            by_class[call.operator] = by_class.get(call.operator, 0.0) + seconds(call, device)
        total = sum(by_class.values())
        error = math.hypot(*(t * CLASSES[operator].p90 for operator, t in by_class.items()))
        found.append(
            Measurement(
                name=name,
                workload=workload.name,
                value=1e3 * total,
                low=1e3 * (total - error),
                high=1e3 * (total + error),
                provenance="estimated",
                device=device.name,
            )
        )
    return tuple(found)


def seconds(call: Call, device: Device) -> float:
    """The time of one call on a device, by its class's constants."""
    constants = CLASSES[call.operator]
    peak = (device.fp8 if call.fp8 and device.fp8 else device.bf16) * 1e12
    waves = math.ceil(call.serial_chunks / device.units) if call.serial_chunks else 0
    busy = max(
        call.flops / (peak * constants.compute),
        call.bytes / (device.memory_gbps * 1e9 * constants.memory),
        waves * constants.step_us * 1e-6,
    )
    return busy + constants.overhead_us * 1e-6


def calls(architecture: Architecture, point: Point) -> Iterator[Call]:
    """Every operator call of one forward pass at a point, the head at the last token included."""
    d_model, rows = architecture.d_model, point.rows
    matrices: dict[int | None, list[tuple[Weight, bool]]] = {}
    for placed in placed_weights(architecture):
        matrices.setdefault(placed.sub_block, []).append((placed.weight, placed.fp8))
    yield _rows(rows, d_model)  # embedding lookup
    for index, (_, block) in enumerate(architecture.sub_blocks):
        yield _rows(rows, 2 * d_model)  # norm with its residual
        for weight, fp8 in matrices[index]:
            if weight.copies > 1:
                continue  # experts run as one call, below
            if weight.role:
                yield _gemm(weight, rows, architecture.precision if fp8 else None)
        fp8_roles = architecture.fp8_roles(index)
        a_token = kv_bytes(block.cache(), fp8="kv_cache" in fp8_roles)
        plan = architecture.precision if "experts" in fp8_roles else None
        yield from _mixing(block, d_model, point, a_token, plan)
    head = Weight(name="lm_head.weight", shape=(architecture.vocab_size, d_model), role="lm_head")
    in_fp8 = "lm_head" in architecture.precision.fp8 and not architecture.tied_embeddings
    yield _rows(point.batch, d_model)
    yield _gemm(head, point.batch, architecture.precision if in_fp8 else None)


def _rows(rows: int, width: int) -> Call:
    """A bandwidth-bound pass that reads and writes `width` activations a row."""
    return Call(operator="rows", flops=0.0, bytes=2.0 * rows * width * ACTIVATION_BYTES)


def _gemm(weight: Weight, rows: int, fp8: Precision | None) -> Call:
    out, into = weight.shape
    activations = rows * (into + out) * ACTIVATION_BYTES
    return Call(
        operator="gemm_fp8" if fp8 else "gemm",
        flops=2.0 * rows * out * into,
        bytes=bytes_of(weight, fp8) + activations,
        fp8=fp8 is not None,
    )


def _mixing(
    block: AnyBlock, d_model: int, point: Point, a_token: int, experts_fp8: Precision | None
) -> Iterator[Call]:
    """The calls of a block besides its projections; `a_token` are its cache bytes a token."""
    rows, cache = point.rows, block.cache()
    seen = (
        visible(point.context, cache.window)
        if point.decode
        else mean_visible(point.tokens, cache.window)
    )
    match block:
        case Attention():
            width = block.heads * block.head_dim
            read = seen * a_token * point.batch if point.decode else rows * a_token
            yield Call(
                operator="attention_decode" if point.decode else "attention_prefill",
                flops=rows * block.mixing_flops(seen),
                bytes=read + 2.0 * rows * width * ACTIVATION_BYTES,
            )
        case Mla() if point.decode:  # absorbed: the latent is key and value of every head
            latent = 2 * block.kv_lora_rank + block.qk_rope_head_dim
            yield Call(
                operator="mla_decode",
                flops=2.0 * rows * block.heads * seen * latent,
                bytes=point.batch * seen * a_token + 2.0 * rows * block.heads * latent,
            )
        case Mla():
            per_head = 2 * block.qk_head_dim + 2 * block.v_head_dim
            yield Call(
                operator="mla_prefill",
                flops=rows * block.mixing_flops(seen),
                bytes=1.0 * rows * block.heads * per_head * ACTIVATION_BYTES,
            )
        case Mamba2() | GatedDeltaNet():
            yield from _recurrence(block, point)
        case FeedForward():
            yield _rows(rows, 2 * block.width)
        case Moe():
            yield _experts(block, d_model, rows, experts_fp8)
        case _:
            assert_never(block)


def _recurrence(block: Mamba2 | GatedDeltaNet, point: Point) -> Iterator[Call]:
    rows, cache = point.rows, block.cache()
    channels = block.conv_width
    yield Call(
        operator="conv", flops=2.0 * rows * channels * block.conv, bytes=4.0 * rows * channels
    )
    yield _rows(rows, 2 * (block.d_inner if isinstance(block, Mamba2) else block.v_width))
    state_traffic = 2.0 * point.batch * cache.state_elements * 4
    if point.decode:
        flops = rows * block.mixing_flops(1)
        yield Call(operator="recurrent_step", flops=flops, bytes=state_traffic)
        return
    if isinstance(block, Mamba2):
        heads, keys, values = block.heads, block.d_state, block.head_dim
        flops = rows * heads * (CHUNK * (keys + values) + 4.0 * keys * values)
    else:
        heads, keys, values = block.v_heads, block.k_head_dim, block.v_head_dim
        within = CHUNK * (3 * keys + 2 * values) + CHUNK**2 / 3
        flops = rows * heads * (within + 6.0 * keys * values)
    # Chunks of a sequence follow each other; a device runs one head of one sequence a unit.
    yield Call(
        operator="scan",
        flops=flops,
        bytes=2.0 * rows * heads * (keys + 2 * values) + state_traffic,
        serial_chunks=math.ceil(point.tokens / CHUNK) * point.batch * heads,
    )


def _experts(block: Moe, d_model: int, rows: int, fp8: Precision | None) -> Call:
    """All routed experts of a layer in one call; tokens meet E (1 - (1 - k/E)^n) of them."""
    stacked = [weight for weight in block.weights(d_model) if weight.copies > 1]
    met = block.n_experts * (1 - (1 - block.top_k / block.n_experts) ** rows)
    read = sum(bytes_of(weight, fp8) for weight in stacked) * met / block.n_experts
    return Call(
        operator="experts_fp8" if fp8 else "experts",
        flops=2.0 * rows * sum(weight.active_count for weight in stacked),
        bytes=read + 4.0 * rows * d_model * ACTIVATION_BYTES,
        fp8=fp8 is not None,
    )
