"""Random hybrid architectures composed of timed calls, to test the interval of a sum.

The calls of one architecture belong to one scenario, as those of a forward pass do: a decoding step
of one batch size, or a prefill of one number of tokens. An architecture takes a few calls of each
kind and repeats them over its layers; its weights are of similar size, so that no single one
dominates its time.
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
Scenario = tuple[str, int]  # "decode" or "prefill", and the tokens of its pass
SMALLEST, LARGEST = 1 << 21, 1 << 28  # elements of a weight of a layer
SIZE_DOUBLINGS = 4  # between the smallest and the largest weight of one architecture, at most
DECODE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL = (512, 1024, 2048, 4096, 8192, 16384)


def scenarios(call: Operator) -> Iterator[Scenario]:
    """The scenarios that a call may be part of."""
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
    """`each` architectures per scenario with enough calls, as counts of indices into `calls`."""
    by_scenario: dict[Scenario, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, call in enumerate(calls):
        for scenario in scenarios(call):
            by_scenario[scenario][call.family].append(index)
    for phase, sizes in (("decode", DECODE), ("prefill", PREFILL)):
        for size in sizes:
            found = by_scenario[phase, size]
            if len(found[f"attention_{phase}"]) >= 2 and len(found["gemm"]) >= MIN_PRODUCTS:
                for _ in range(each):
                    yield (phase, size), _architecture(found, calls, phase, rng)


def _architecture(
    indices: dict[str, list[int]], calls: Sequence[Operator], phase: str, rng: np.random.Generator
) -> Counter[int]:
    """Attention in a fraction of the layers, the delta rule in the others, a feed-forward in each.

    Half of the architectures have two kinds of attention, as full and windowed layers are. A mixer
    has an input and an output projection; a dense feed-forward has two matrix products, as has the
    shared expert. The head is one more.
    """
    layers, drawn = int(rng.integers(16, 65)), Counter[int]()
    products = {name: _similar(indices[name], calls, rng) for name in ("gemm", "gemm_fp8")}

    def one(family: str) -> int:
        return int(rng.choice(products.get(family) or indices[family]))

    scan, conv = ("recurrent_step", "conv_step") if phase == "decode" else ("scan", "conv")
    hybrid = indices[scan] and indices[conv]
    fraction = rng.choice([1, 1 / 2, 1 / 4, 1 / 8]) if hybrid else 1
    attending = max(1, round(layers * fraction))
    second = attending // 2 if rng.random() < 0.5 else 0
    latent = indices[f"mla_{phase}"] and rng.random() < 0.25
    for times in filter(None, (attending - second, second)):
        for family in (f"mla_{phase}" if latent else f"attention_{phase}", "gemm", "gemm"):
            drawn[one(family)] += times
    for family in (scan, conv, "gemm", "gemm") if attending < layers else ():
        drawn[one(family)] += layers - attending
    dense = "gemm_fp8" if len(products["gemm_fp8"]) >= 2 and rng.random() < 0.3 else "gemm"
    stacks = [f"experts{suffix}" for suffix in ("", "_fp8") if indices[f"experts{suffix}"]]
    routed = (rng.choice(stacks),) if stacks and rng.random() < 0.5 else ()
    for family in (*routed, dense, dense):
        drawn[one(family)] += layers
    drawn[one("gemm")] += 1  # the head
    return drawn


def _similar(found: list[int], calls: Sequence[Operator], rng: np.random.Generator) -> list[int]:
    """Products whose weights are within `SIZE_DOUBLINGS` doublings of each other."""
    if not found:
        return []
    sizes = np.log2([call.n * call.k for i in found if isinstance(call := calls[i], Gemm)])
    least = rng.choice(sizes) - SIZE_DOUBLINGS / 2
    return [
        i for i, size in zip(found, sizes, strict=True) if least <= size <= least + SIZE_DOUBLINGS
    ]
