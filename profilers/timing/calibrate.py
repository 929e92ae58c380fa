"""Calibration: operator calls timed on the local device, for the cost model to fit.

    python -m archfront.profilers.timing.calibrate --device cuda:0 --points 100 -o h200.json

needs only torch and triton, on a machine without a store; `archfront calibrate` does the same and
stores the result, or stores such a file. Points are a Sobol sequence over the logarithms of the
sizes that models have, without calls that take too much of the device's memory or too long.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.quasirandom import SobolEngine

from ...search_space.document import InputError
from ...search_space.operators import (
    AttentionDecode,
    AttentionPrefill,
    ChannelScan,
    Conv,
    ConvStep,
    Experts,
    Gemm,
    MLADecode,
    MLAPrefill,
    NumberFormat,
    Operator,
    RecurrentStep,
    Rows,
    Scan,
)
from ..cost.work import tensor_core_flops
from ..device import Device
from ..local_device import local_device
from ..out_of_memory import is_out_of_memory
from .calibration import Calibration
from .operators import NotRunnable, run_of
from .protocol import Drifted, sets_needed, timed
from .worker import facts as software

POINTS = (30, 100)
DRAWN = 64  # candidates per point
MEMORY_FRACTION = 0.15  # of the device, for the data of one call
MAX_S = {"cuda": 0.02, "cpu": 0.04}  # of one call, by the data sheet


def calibrate(
    where: str,
    points: int,
    *,
    report: Callable[[str, int, int], None] | None = None,
    names: Sequence[str] = (),
) -> tuple[Calibration, tuple[str, ...]]:
    """Time `points` calls of each cost class on the local device; the calibration, and warnings.

    `where` is torch's name of the device; `names` are classes of `SHAPES`, all by default;
    `report(name, done, of)` is called before each point. Points that cannot be timed are left out
    with a warning. Raises InputError where there is no such device.
    """
    here, warnings = local_device(where)
    local = torch.device(where)
    found: list[tuple[Operator, float]] = []
    reasons: dict[str, int] = defaultdict(int)
    with torch.inference_mode():
        for name in names or tuple(SHAPES):
            drawn = points_of(SHAPES[name], here, points, local)
            for done, call in enumerate(drawn):
                if report:
                    report(name, done + 1, len(drawn))
                answer = _timed(call, local)
                if isinstance(answer, str):
                    reasons[f"{name}: {answer}"] += 1
                else:
                    found.append((call, answer))
    left_out = [f"{reason}, {count} points left out" for reason, count in reasons.items()]
    calibration = Calibration(device=here, software=software(local), timings=tuple(found))
    return calibration, (*warnings, *left_out)


def _timed(call: Operator, local: torch.device) -> float | str:
    """Seconds, or the reason why there are none."""
    try:
        runs = [run_of(call, local)]
        runs += [run_of(call, local) for _ in range(sets_needed(call.bytes, local) - 1)]
        return timed(runs, local, graph=isinstance(call, _DECODING)).seconds
    except NotRunnable:
        return "no kernel here"
    except Drifted:
        return "the device's speed changed"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return "out of memory"


_DECODING = (AttentionDecode, MLADecode, RecurrentStep, ConvStep)


def points_of(sizes: "Sizes", here: Device, points: int, local: torch.device) -> list[Operator]:
    """At most `points` calls of one cost class that fit the device's memory and time.

    They are evenly distributed over the logarithms of its sizes, the same for every call.
    """
    small = local.type == "cpu"
    drawn = SobolEngine(len(sizes.ranges), scramble=True, seed=0).draw(DRAWN * points)
    found: dict[Operator, None] = {}
    max_bytes = MEMORY_FRACTION * here.memory_gb * 1e9
    for coordinates in drawn.tolist():
        call = sizes.make(**_sizes(sizes.ranges, coordinates, small=small))
        rough = max(
            tensor_core_flops(call) / here.peak("bf16"), call.bytes / (here.memory_gbps * 1e9)
        )
        if call.bytes <= max_bytes and rough <= MAX_S[local.type]:
            found[call] = None
        if len(found) == points:
            break
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The (low, high, step) of each size of a cost class, and the call that sizes make."""

    ranges: dict[str, tuple[int, int, int]]
    make: Callable[..., Operator]


CPU_DIVISOR = 8  # the largest sizes of a GPU over those of a CPU


def _sizes(
    ranges: Mapping[str, tuple[int, int, int]], coordinates: list[float], *, small: bool
) -> dict[str, int]:
    """Sizes at a point of the unit cube, which spans their logarithms."""
    found = {}
    for (name, (low, high, step)), at in zip(ranges.items(), coordinates, strict=True):
        top = max(low, high // CPU_DIVISOR) if small else high
        size = low * (top / low) ** at
        found[name] = max(low, step * round(size / step))
    return found


def _power(size: int) -> int:
    return 1 << round(math.log2(size))


def _heads(group: int, kv_heads: int, width: int) -> dict[str, Any]:
    """Grouped-query heads in powers of two, and a head width of 64, 128 or 256."""
    kv_heads, head_dim = _power(kv_heads), 64 if width < 90 else 128 if width < 180 else 256
    return {
        "heads": _power(group) * kv_heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "v_head_dim": head_dim,
    }


def _attention_prefill(batch: int, tokens: int, windows: int, **heads: int) -> AttentionPrefill:
    window = 64 * windows if windows < 64 else None
    return AttentionPrefill(batch=batch, tokens=tokens, window=window, **_heads(**heads))


def _attention_decode(kv: NumberFormat, batch: int, context: int, **heads: int) -> AttentionDecode:
    return AttentionDecode(batch=batch, context=context, kv=kv, **_heads(**heads))


def _scan(delta: bool, batch: int, tokens: int, heads: int) -> Scan:
    return Scan(
        batch=batch,
        tokens=tokens,
        k_heads=heads // 2 if delta else 1,
        heads=heads,
        k_dim=128,
        v_dim=128 if delta else 64,
        delta=delta,
    )


def _step(delta: bool, batch: int, heads: int) -> RecurrentStep:
    v_dim = 128 if delta else 64
    return RecurrentStep(batch=batch, heads=heads, k_dim=128, v_dim=v_dim, delta=delta)


def _experts(rows: int, width: int, d_expert: int, top_k: int, n_experts: int) -> Experts:
    n_experts = _power(n_experts)
    top_k = min(_power(top_k), n_experts // 2)
    return Experts(rows=rows, width=width, d_expert=d_expert, top_k=top_k, n_experts=n_experts)


_HEADS = {"group": (1, 16, 1), "kv_heads": (1, 16, 1), "width": (64, 256, 64)}
_TEXT = {"batch": (1, 32, 1), "tokens": (128, 32_768, 64)}
_CACHED = {"batch": (1, 256, 1), "context": (128, 131_072, 64)}
_PRODUCT = {"m": (1, 16_384, 1), "n": (256, 32_768, 64), "k": (256, 32_768, 64)}
_STATES = {"heads": (4, 128, 4)}
_CHANNELS = {"channels": (256, 16_384, 64)}
_LATENT = {"heads": (4, 128, 4)}
SHAPES: dict[str, Sizes] = {
    "gemm": Sizes(ranges=_PRODUCT, make=Gemm),
    "gemm_fp8": Sizes(ranges=_PRODUCT, make=partial(Gemm, weights="fp8")),
    "attention_prefill": Sizes(
        ranges={**_TEXT, **_HEADS, "windows": (4, 512, 1)}, make=_attention_prefill
    ),
    "attention_decode": Sizes(
        ranges={**_CACHED, **_HEADS}, make=partial(_attention_decode, "bf16")
    ),
    "attention_decode_kv8": Sizes(
        ranges={**_CACHED, **_HEADS}, make=partial(_attention_decode, "int8")
    ),
    "mla_prefill": Sizes(
        ranges={**_TEXT, **_LATENT}, make=partial(MLAPrefill, qk_head_dim=192, v_head_dim=128)
    ),
    "mla_decode": Sizes(
        ranges={**_CACHED, **_LATENT},
        make=partial(MLADecode, kv_lora_rank=512, qk_rope_head_dim=64),
    ),
    "scan": Sizes(ranges={**_TEXT, **_STATES}, make=partial(_scan, True)),
    "scan_plain": Sizes(ranges={**_TEXT, **_STATES}, make=partial(_scan, False)),
    "recurrent_step": Sizes(ranges={"batch": (1, 256, 1), **_STATES}, make=partial(_step, True)),
    "recurrent_step_plain": Sizes(
        ranges={"batch": (1, 256, 1), **_STATES}, make=partial(_step, False)
    ),
    "channel_scan": Sizes(ranges={**_TEXT, **_CHANNELS}, make=partial(ChannelScan, states=16)),
    "conv": Sizes(ranges={**_TEXT, **_CHANNELS}, make=partial(Conv, width=4)),
    "conv_step": Sizes(ranges={"batch": (1, 256, 1), **_CHANNELS}, make=partial(ConvStep, width=4)),
    "experts": Sizes(
        ranges={
            "rows": (1, 16_384, 1),
            "width": (256, 8192, 128),
            "d_expert": (256, 16_384, 128),
            "top_k": (1, 16, 1),
            "n_experts": (8, 256, 1),
        },
        make=_experts,
    ),
    "rows": Sizes(ranges={"rows": (1, 65_536, 1), "elements": (512, 65_536, 128)}, make=Rows),
}


def main() -> int:
    """Calibrate the local device and write the JSON file."""
    parser = argparse.ArgumentParser(description="Time operators on the local device.")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--points", type=int, default=30, choices=POINTS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    try:
        found, warnings = calibrate(given.device, given.points)
    except InputError as error:
        parser.error(str(error))
    given.output.write_text(json.dumps(found.plain()))
    sys.stderr.writelines(f"{line}\n" for line in warnings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
