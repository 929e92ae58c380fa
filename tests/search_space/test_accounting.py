"""Counts by formula against published totals and arithmetic by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from archfront.search_space import accounting
from archfront.search_space.architecture import Architecture
from archfront.search_space.operators import mean_visible

Make = Callable[..., Architecture]
MLA_BLOCK = {
    "kind": "mla",
    "heads": 2,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
ATLAS = Path(__file__).parents[3] / "shared" / "atlas.yaml"


def llama(
    d_model: int, layers: int, heads: int, kv_heads: int, width: int, vocabulary: int
) -> Architecture:
    return Architecture.model_validate(
        {
            "d_model": d_model,
            "vocab_size": vocabulary,
            "pattern": f"(*-)x{layers}",
            "blocks": {
                "*": {
                    "kind": "attn",
                    "heads": heads,
                    "kv_heads": kv_heads,
                    "head_dim": d_model // heads,
                },
                "-": {"kind": "ffn", "width": width},
            },
        }
    )


def test_llama_3_8b_counts_as_published() -> None:
    counted = accounting.parameters(llama(4096, 32, 32, 8, 14336, 128256))
    assert counted.total == counted.active == 8_030_261_248
    assert counted.active_no_input_embedding == 7_504_924_672
    assert (
        accounting.cache_bytes(llama(4096, 32, 32, 8, 14336, 128256)).kv_bytes_per_token == 131_072
    )


def test_deepseek_v3_counts_as_published() -> None:
    moe = {
        "kind": "moe",
        "n_experts": 256,
        "top_k": 8,
        "d_expert": 2048,
        "n_shared": 1,
        "router": "sigmoid_bias",
    }
    mla = {
        "kind": "mla",
        "heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    v3 = Architecture.model_validate(
        {
            "d_model": 7168,
            "vocab_size": 129280,
            "pattern": "(L-)x3(LE)x58",
            "blocks": {"L": mla, "-": {"kind": "ffn", "width": 18432}, "E": moe},
        }
    )
    counted = accounting.parameters(v3)
    assert counted.total == 671_026_404_352
    assert counted.active == 37_552_282_624
    assert accounting.cache_bytes(v3).kv_bytes_per_token == 70_272


@pytest.mark.skipif(
    not ATLAS.exists(), reason="the atlas of published models is not beside this clone"
)
@pytest.mark.parametrize("name", ["nemotron_h_8b", "mamba2_2.7b"])
def test_mamba2_hybrids_count_as_in_the_source_of_the_atlas(name: str) -> None:
    entry = next(m for m in yaml.safe_load(ATLAS.read_text())["models"] if m["id"] == name)
    keep = {
        "attn": ("kind", "heads", "kv_heads", "head_dim"),
        "mamba2": ("kind", "heads", "head_dim", "d_state", "groups", "conv"),
    }
    blocks = {
        symbol: {"kind": "ffn", "width": block["width"], "activation": "relu2"}
        if block["kind"] == "ffn"
        else {field: block[field] for field in keep[block["kind"]]}
        for symbol, block in entry["blocks"].items()
    }
    fields = {
        field: entry[field] for field in ("d_model", "vocab_size", "pattern", "tied_embeddings")
    }
    made = Architecture.model_validate({**fields, "blocks": blocks})
    assert accounting.parameters(made).total == entry["counted"]["formula_total"]
    state = accounting.cache_bytes(made).state_bytes_per_sequence
    assert state == entry["cache"]["state_bytes_per_seq"]


def test_a_window_caps_the_cache(architecture: Make) -> None:
    made = architecture("W-")
    assert accounting.cache_bytes(made).kv_bytes_per_token == 0
    assert accounting.cache_bytes(made).windowed_kv_bytes_cap == 8 * 2 * 16 * 2
    assert accounting.cache_bytes_at(made, 4) == 4 * 2 * 16 * 2
    assert accounting.cache_bytes_at(made, 1000) == 8 * 2 * 16 * 2


def test_only_attention_makes_flops_grow_with_the_context(architecture: Make) -> None:
    grown = [accounting.flops_per_token(architecture(p), 200) - accounting.flops_per_token(architecture(p), 100)
             for p in ("*-", "M-", "G-", "W-")]  # fmt: skip
    assert grown == [4 * 4 * 16 * 100, 0, 0, 0]


@pytest.mark.parametrize(
    ("symbol", "block", "flops"),
    [
        ("*", {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16}, 4 * 4 * 16 * 100),
        ("L", MLA_BLOCK, 2 * 2 * (24 + 16) * 100),
        ("M", {"kind": "mamba2", "heads": 4, "head_dim": 16, "d_state": 8}, 6 * 64 * 8 + 2 * 4 * 80),
        ("G", {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 8, "v_head_dim": 16}, 8 * 64 * 8 + 2 * 4 * 96),
        ("m", {"kind": "mamba1", "d_inner": 32, "d_state": 4, "dt_rank": 4}, 6 * 32 * 4 + 2 * 4 * 32),
        ("U", {"kind": "rglru", "width": 32, "blocks": 2}, (4 + 2 * 4) * 32),
        ("D", {"kind": "ttt_linear", "heads": 4, "head_dim": 16}, 8 * 64 * 16 + 2 * 4 * 192),
        ("Y", {"kind": "shortconv", "conv": 3}, (2 * 3 + 2) * 64),
        ("E", {"kind": "moe", "n_experts": 8, "top_k": 2, "d_expert": 32}, 2 * 2 * 3 * 64 * 32),
    ],
)  # fmt: skip
def test_operator_flops_are_those_by_hand(
    architecture: Make, symbol: str, block: dict, flops: int
) -> None:
    made = architecture(f"{symbol}-", blocks={symbol: block}).blocks[symbol]
    assert made.operator_flops(d_model=64, context=100) == flops


def test_mean_visible_is_the_mean_over_a_prefill() -> None:
    for tokens, window in ((10, None), (10, 3), (3, 10), (7, 7)):
        seen = [min(t + 1, window or tokens) for t in range(tokens)]
        assert mean_visible(tokens, window) == pytest.approx(sum(seen) / tokens)


def test_fp8_halves_the_bytes_of_its_roles_and_adds_scales(architecture: Make) -> None:
    plain, fp8 = (
        architecture("*-", precision={"fp8": roles}) for roles in ([], ["ffn.up", "ffn.down"])
    )
    elements, rows = 3 * 64 * 96, 96 + 96 + 64
    assert accounting.weight_bytes(plain) - accounting.weight_bytes(fp8) == elements - 4 * rows


def test_an_fp8_cache_has_a_scale_per_head(architecture: Make) -> None:
    made = architecture("*-", precision={"fp8": ["kv_cache"]})
    assert accounting.cache_bytes(made).kv_bytes_per_token == 2 * 2 * 16 + 2 * 2 * 4
