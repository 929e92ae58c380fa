"""Which choices have no kernel, and that every block has one."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from archfront.profilers.kernel_support import Lack, lacks, unsupported_uses
from archfront.profilers.timing.units import pieces
from archfront.search_space import published
from archfront.search_space.architecture import Architecture
from archfront.search_space.check import check_space
from archfront.search_space.document import read_document
from archfront.search_space.space import SearchSpace

ALL_BLOCKS = yaml.safe_load(files("archfront.examples").joinpath("all_blocks.yaml").read_text())


def space(folder: Path, **changed: object) -> SearchSpace:
    """Hybrids of attention and Mamba-2 with a choice of state and of cache."""
    data = {
        "name": "small",
        "architecture": {
            "d_model": 256,
            "vocab_size": 1024,
            "pattern": {"choices": ["M-M-", "*-M-"]},
            "blocks": {
                "*": {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 64},
                "M": {
                    "kind": "mamba2",
                    "heads": 8,
                    "head_dim": 64,
                    "d_state": {"choices": [64, 256]},
                },
                "-": {"kind": "ffn", "width": 512},
            },
            "precision": {"fp8": {"choices": [[], ["kv_cache"]]}},
        },
        "objectives": ["bits_per_byte"],
    }
    data["architecture"] |= changed
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(data))
    return check_space(read_document(path))


@pytest.mark.parametrize(
    "piece", pieces(Architecture.model_validate(ALL_BLOCKS["architecture"])), ids=lambda p: p.symbol
)
def test_every_block_runs_on_hopper(piece):
    assert unsupported_uses(piece, "sm_90") == {}


def test_the_choice_at_fault_is_named_for_each_gpu(tmp_path):
    found = lacks(space(tmp_path))
    law = "fwd_state needs keys at most 128 wide on sm_80 in torch.bfloat16, got K=256"
    assert found[0] == Lack(
        choice="blocks.M.d_state",
        value=256,
        arch="sm_80",
        constraints={"prefill": law, "training": law},
    )
    (cache,) = found[1:]
    assert (cache.choice, cache.value, cache.arch) == ("precision.fp8", ["kv_cache"], "sm_80")
    assert list(cache.constraints) == ["decode"]


def test_a_block_that_no_choice_decides_is_named_itself(tmp_path):
    wide = {"M": {"kind": "mamba2", "heads": 8, "head_dim": 64, "d_state": 512}}
    found = lacks(space(tmp_path, pattern="M-", blocks={**wide, "-": {"kind": "ffn", "width": 64}}))
    assert [(lack.choice, lack.arch) for lack in found] == [
        ("blocks.M", "sm_80"),
        ("blocks.M", "sm_90"),
        ("blocks.M", "sm_100"),
    ]


def test_what_runs_everywhere_lacks_nothing(tmp_path):
    blocks = {
        "*": {"kind": "attn", "heads": 4, "kv_heads": {"choices": [1, 2]}, "head_dim": 64},
        "-": {"kind": "ffn", "width": 512},
    }
    assert lacks(space(tmp_path, pattern="*-", blocks=blocks, precision={"fp8": []})) == []


def test_a_layer_that_is_kept_in_bfloat16_is_a_piece_in_bfloat16():
    data = ALL_BLOCKS["architecture"] | {
        "pattern": "*-*-",
        "blocks": {symbol: ALL_BLOCKS["architecture"]["blocks"][symbol] for symbol in "*-"},
        "precision": {"fp8": ["ffn.up"], "keep_last_layers": 1},
    }
    *blocks, _ = pieces(Architecture.model_validate(data))
    formats = [piece.architecture.formats(0) for piece in blocks]
    assert formats == [{"ffn.up": "fp8"}, {"ffn.up": "fp8"}, {}, {}]


def test_fp8_experts_run_at_widths_that_no_block_of_scales_divides():
    data = ALL_BLOCKS["architecture"] | {
        "pattern": "E",
        "blocks": {"E": {"kind": "moe", "n_experts": 4, "top_k": 2, "d_expert": 400}},
        "precision": {"fp8": ["experts"], "recipe": "blockwise"},
    }
    for piece in pieces(Architecture.model_validate(data)):
        assert unsupported_uses(piece, "sm_90") == {}


@pytest.mark.slow
def test_every_published_decoder_runs_on_hopper():
    found = set()
    for name in published.names():
        architecture = published.entry(name).architecture
        if not architecture.encoder:
            for piece in pieces(architecture):
                found |= {(name, *unsupported_uses(piece, "sm_90").values())}
    law = "one program holds a whole row: width <= 8192, got width=16384, gradient=True"
    assert {broken for broken in found if len(broken) > 1} == {("llama3.1_405b", law)}
