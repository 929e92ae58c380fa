"""The operator calls of every block kind: those that are priced are those that run."""

from collections import Counter

import pytest
import torch
from block_cases import CASES, D_MODEL, architecture
from operator_calls import Recorded, priced, recorded

from archfront.builders.model import build
from archfront.kernels.meta_dry_run import dry_run_on
from archfront.profilers.lowering import joined, layer_calls
from archfront.search_space.architecture import Architecture
from archfront.search_space.operators import Point, Rows

BATCH, TOKENS, CONTEXT = 2, 40, 42  # at 42 no group of four tokens is completed
POINTS = {
    "prefill": Point(batch=BATCH, tokens=TOKENS, context=TOKENS),
    "decode": Point(batch=BATCH, tokens=1, context=CONTEXT),
}
# What they compute depends on the tokens; they are priced at the mean.
DATA_DEPENDENT = {"mixture of depths", "merged tokens"}
# Residual sums that are not one addition in front of an RMSNorm.
OTHER_RESIDUALS = {
    "attention residuals",
    "branches with norms and gates",
    "hyper-connections",
    "merged tokens",
    "mixture of depths",
    "sandwich of layer norms",
    "shared block",
}


def run(small: Architecture, use: str, monkeypatch: pytest.MonkeyPatch, device: str) -> Recorded:
    """The calls of one pass of a small model, on real or on meta tensors (up to each launch)."""
    dtype = torch.bfloat16 if device == "meta" else torch.float32
    model = build(small, device=device, dtype=dtype).eval()
    tokens = torch.zeros(BATCH, TOKENS, dtype=torch.int64, device=device)
    caches = model.fill_random(BATCH, CONTEXT - 1) if use == "decode" else None
    with recorded(monkeypatch) as calls, torch.no_grad():
        if caches is None:
            model.prefill(tokens)
        else:
            model.step(tokens[:, 0], caches)
    return calls


def assert_priced_as_run(small: Architecture, use: str, calls: Recorded) -> None:
    expected = priced(joined(layer_calls(small, POINTS[use])))
    assert calls.calls == expected.calls
    assert calls.product_flops == pytest.approx(expected.product_flops)
    assert calls.expert_flops == pytest.approx(expected.expert_flops)


@pytest.mark.parametrize("use", POINTS)
@pytest.mark.parametrize("name", [name for name in CASES if name not in DATA_DEPENDENT])
def test_the_calls_priced_are_the_calls_made(name, use, monkeypatch):
    small = architecture(name)
    with dry_run_on("sm_90"):
        calls = run(small, use, monkeypatch, "meta")
    assert_priced_as_run(small, use, calls)


def test_merged_tokens_are_priced_as_they_run(monkeypatch):
    small = architecture("merged tokens")
    assert_priced_as_run(small, "prefill", run(small, "prefill", monkeypatch, "cpu"))


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHER_RESIDUALS])
def test_a_residual_sum_and_its_norm_are_priced_and_run_as_one(name, monkeypatch):
    small = architecture(name)
    with dry_run_on("sm_90"):
        calls = run(small, "prefill", monkeypatch, "meta")
    rows = BATCH * TOKENS
    fused = Rows(rows=rows, elements=4 * D_MODEL)
    plain = small.changed(pattern=".", blocks={".": {"kind": "noop"}}, joins={})
    sub_blocks = Counter(small.symbols).total()
    around = joined(layer_calls(plain, POINTS["prefill"]))[fused]
    assert around == 1, "one sub-block, one fused pass"
    assert calls.residual_norms == {(rows, D_MODEL): sub_blocks}
