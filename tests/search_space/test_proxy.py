"""Proxy models keep proportions, order and sparsity."""

from collections.abc import Callable
from pathlib import Path

import pytest

from archfront.search_space.accounting import parameters
from archfront.search_space.architecture import Architecture
from archfront.search_space.check import load_space
from archfront.search_space.pattern import compress, unroll
from archfront.search_space.plan import Proxy
from archfront.search_space.proxy import proxy_architecture, shrink_depth
from archfront.search_space.space import sample

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("pattern", "layers", "small"),
    [
        ("(G-G-G-*-)x12", 4, "G-G-*-G-"),
        ("(G-G-G-*-)x12", 8, "(G-G-*-G-)x2"),
        ("*-*-(M-)x10", 4, "*-M-M-M-"),
        ("(M-)x10*-*-", 4, "M-M-M-*-"),
        ("(*-)x12", 4, "(*-)x4"),
        ("M-*-", 4, "M-*-"),
    ],
)
def test_depth_shrinks_in_proportion_and_order(pattern: str, layers: int, small: str) -> None:
    assert compress(shrink_depth(unroll(pattern), layers)) == small


def test_fewer_layers_than_kinds_are_rejected() -> None:
    with pytest.raises(ValueError, match="at least the number of layer kinds, got 2 for 3 kinds"):
        shrink_depth(unroll("(M-*-L-)x4"), 2)


def test_experts_keep_their_sparsity_and_activated_width(
    architecture: Callable[..., Architecture],
) -> None:
    moe = {"kind": "moe", "n_experts": 64, "top_k": 8, "d_expert": 128, "n_shared": 1}
    big = architecture("*E", d_model=512, blocks={"E": moe})
    small = proxy_architecture(big, Proxy(d_model=128, layers=4), context_fraction=1).blocks["E"]
    assert small.kind == "moe"
    assert small.top_k / small.n_experts == 8 / 64
    assert small.top_k * small.d_expert == 8 * 128 // 4
    assert small.n_shared >= 1


def test_a_window_keeps_its_fraction_of_the_context(
    architecture: Callable[..., Architecture],
) -> None:
    wide = {"kind": "attn", "heads": 4, "kv_heads": 1, "head_dim": 16, "window": 1024}
    big = architecture("W-", blocks={"W": wide})
    small = proxy_architecture(big, Proxy(), context_fraction=128 / 4096).blocks["W"]
    assert small.kind == "attn"
    assert small.window == 32


@pytest.mark.parametrize("name", ["tiny", "hybrid-1b"])
def test_every_candidate_of_a_space_has_a_proxy_model(name: str) -> None:
    space = load_space(EXAMPLES / f"{name}.yaml")
    for candidate in sample(space, 40, seed=3).legal:
        small = proxy_architecture(candidate, space.plan.proxy, context_fraction=128 / 4096)
        assert small.d_model == space.plan.proxy.d_model
        assert parameters(small).active < 5_000_000
        kinds = {symbol[0] for symbol in candidate.symbols}
        assert {symbol[0] for symbol in small.symbols} == kinds
