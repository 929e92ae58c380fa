"""Random hybrid architectures made of calls that were measured: truth for the error of a sum.

Calls that a forward pass would make together share a scenario: all of a decode batch, or all of a
prefill of so many tokens. An architecture takes a few of each kind and repeats them over its layers;
its weights are of a like size, so that no single one is the whole of its time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

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
    Operator,
    RecurrentStep,
    Scan,
)

MIN_PRODUCTS = 4
Scenario = tuple[str, int]  # the phase, and how many tokens its pass handles
SMALLEST, LARGEST = 1 << 21, 1 << 28  # elements of a weight that a layer of a model of today has
ALIKE = 4  # how often the largest weight of a model's layers is the smallest doubled, at most
DECODE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL = (512, 1024, 2048, 4096, 8192, 16384)


def scenarios(call: Operator) -> Iterator[Scenario]:
    """The passes that a call may be part of."""
    match call:
        case Gemm() if not SMALLEST <= call.n * call.k <= LARGEST:
            return
        case Gemm(m=rows) | Experts(rows=rows):
            yield "decode", rows
            yield "prefill", rows
        case AttentionDecode() | MLADecode() | RecurrentStep() | ConvStep():
            yield "decode", call.batch
        case AttentionPrefill() | MLAPrefill() | Scan() | Conv():
            yield "prefill", call.batch * call.tokens


def compose(
    calls: Sequence[Operator], rng: np.random.Generator, each: int
) -> Iterator[tuple[Scenario, Counter[int]]]:
    """`each` architectures for every scenario that the calls suffice for, as counts of their places."""
    places: dict[Scenario, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, call in enumerate(calls):
        for scenario in scenarios(call):
            places[scenario][call.family].append(index)
    for phase, sizes in (("decode", DECODE), ("prefill", PREFILL)):
        for size in sizes:
            found = places[phase, size]
            if len(found[f"attention_{phase}"]) >= 2 and len(found["gemm"]) >= MIN_PRODUCTS:
                for _ in range(each):
                    yield (phase, size), _architecture(found, calls, phase, rng)


def _architecture(
    places: dict[str, list[int]], calls: Sequence[Operator], phase: str, rng: np.random.Generator
) -> Counter[int]:
    """Attention in a share of the layers, the delta rule in the others, one feed-forward each.

    Every second one attends in two ways, as full and windowed layers do. A mixer has two products,
    into its heads and out of them; so has a dense feed-forward, and the expert that all tokens
    share. At last the head.
    """
    layers, drawn = int(rng.integers(16, 65)), Counter[int]()
    products = {name: _alike(places[name], calls, rng) for name in ("gemm", "gemm_fp8")}

    def one(family: str) -> int:
        return int(rng.choice(products.get(family) or places[family]))

    scan, conv = ("recurrent_step", "conv_step") if phase == "decode" else ("scan", "conv")
    share = rng.choice([1, 1 / 2, 1 / 4, 1 / 8]) if places[scan] and places[conv] else 1
    attending = max(1, round(layers * share))
    second = attending // 2 if rng.random() < 0.5 else 0
    latent = places[f"mla_{phase}"] and rng.random() < 0.25
    for times in filter(None, (attending - second, second)):
        for family in (f"mla_{phase}" if latent else f"attention_{phase}", "gemm", "gemm"):
            drawn[one(family)] += times
    for family in (scan, conv, "gemm", "gemm") if attending < layers else ():
        drawn[one(family)] += layers - attending
    dense = "gemm_fp8" if len(products["gemm_fp8"]) >= 2 and rng.random() < 0.3 else "gemm"
    stacks = [f"experts{suffix}" for suffix in ("", "_fp8") if places[f"experts{suffix}"]]
    routed = (rng.choice(stacks),) if stacks and rng.random() < 0.5 else ()
    for family in (*routed, dense, dense):
        drawn[one(family)] += layers
    drawn[one("gemm")] += 1  # the head
    return drawn


def _alike(found: list[int], calls: Sequence[Operator], rng: np.random.Generator) -> list[int]:
    """Those products whose weights could be of one model: within ALIKE doublings of each other."""
    if not found:
        return []
    sizes = np.log2([call.n * call.k for i in found if isinstance(call := calls[i], Gemm)])
    least = rng.choice(sizes) - ALIKE / 2
    return [i for i, size in zip(found, sizes, strict=True) if least <= size <= least + ALIKE]
