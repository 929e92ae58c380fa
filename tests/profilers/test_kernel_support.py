"""Choices of a space without a kernel on its target, and a kernel for every block kind."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from archfront.kernels.configs import ARCHS
from archfront.profilers.device import Device, devices
from archfront.profilers.kernel_support import (
    UnsupportedChoice,
    kernel_archs,
    unsupported_choices,
    unsupported_uses,
)
from archfront.profilers.timing.units import timing_units
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
    "unit",
    timing_units(Architecture.model_validate(ALL_BLOCKS["architecture"])),
    ids=lambda unit: unit.group,
)
@pytest.mark.parametrize("arch", kernel_archs(devices()))
def test_every_block_kind_runs_on_every_target(unit, arch):
    assert unsupported_uses(unit, arch) == {}


@pytest.mark.parametrize("device", devices().values(), ids=lambda device: device.name)
def test_every_nvidia_device_and_no_other_has_kernels(device: Device):
    assert (device.sm in ARCHS) == (device.vendor == "nvidia")
    assert device.vendor == "nvidia" or device.sm is None


def test_targets_of_one_architecture_are_checked_once():
    assert kernel_archs(["8xb300_sxm", "h200_sxm", "h100_sxm", "b200_sxm"]) == ("sm_90", "sm_100")
    assert kernel_archs(["mi300x", "cpu"]) == ()


def test_the_choice_at_fault_is_named_for_each_gpu(tmp_path):
    found = unsupported_choices(space(tmp_path), ("sm_80", "sm_90", "sm_100"))
    violated = "fwd_state needs keys at most 128 wide on sm_80 in torch.bfloat16, got K=256"
    assert found[0] == UnsupportedChoice(
        choice="blocks.M.d_state",
        value=256,
        arch="sm_80",
        constraints={"prefill": violated, "training": violated},
    )
    (cache,) = found[1:]
    assert (cache.choice, cache.value, cache.arch) == ("precision.fp8", ["kv_cache"], "sm_80")
    assert list(cache.constraints) == ["decode"]


def test_a_block_that_no_choice_changes_is_reported_by_its_symbol(tmp_path):
    wide = {"M": {"kind": "mamba2", "heads": 8, "head_dim": 64, "d_state": 512}}
    blocks = {**wide, "-": {"kind": "ffn", "width": 64}}
    found = unsupported_choices(space(tmp_path, pattern="M-", blocks=blocks), ("sm_80", "sm_90"))
    assert [(choice.choice, choice.arch) for choice in found] == [
        ("blocks.M", "sm_80"),
        ("blocks.M", "sm_90"),
    ]


def test_a_space_with_kernels_everywhere_has_no_unsupported_choice(tmp_path):
    blocks = {
        "*": {"kind": "attn", "heads": 4, "kv_heads": {"choices": [1, 2]}, "head_dim": 64},
        "-": {"kind": "ffn", "width": 512},
    }
    checked = space(tmp_path, pattern="*-", blocks=blocks, precision={"fp8": []})
    assert unsupported_choices(checked, kernel_archs(devices())) == []


def test_a_layer_that_is_kept_in_bfloat16_is_a_unit_of_its_own():
    data = ALL_BLOCKS["architecture"] | {
        "pattern": "*-*-",
        "blocks": {symbol: ALL_BLOCKS["architecture"]["blocks"][symbol] for symbol in "*-"},
        "precision": {"fp8": ["ffn.up"], "keep_last_layers": 1},
    }
    *blocks, _ = timing_units(Architecture.model_validate(data))
    formats = [unit.architecture.formats(0) for unit in blocks]
    assert formats == [{"ffn.up": "fp8"}, {"ffn.up": "fp8"}, {}, {}]


def test_fp8_experts_run_at_widths_that_no_block_of_scales_divides():
    data = ALL_BLOCKS["architecture"] | {
        "pattern": "E",
        "blocks": {"E": {"kind": "moe", "n_experts": 4, "top_k": 2, "d_expert": 400}},
        "precision": {"fp8": ["experts"], "recipe": "blockwise"},
    }
    for unit in timing_units(Architecture.model_validate(data)):
        assert unsupported_uses(unit, "sm_90") == {}


@pytest.mark.slow
def test_every_published_decoder_runs_on_hopper():
    found = set()
    for name in published.names():
        architecture = published.entry(name).architecture
        if not architecture.encoder:
            for unit in timing_units(architecture):
                found |= {(name, *unsupported_uses(unit, "sm_90").values())}
    violated = "one program holds a whole row: width <= 8192, got width=16384, gradient=True"
    assert {uses for uses in found if len(uses) > 1} == {("llama3.1_405b", violated)}
