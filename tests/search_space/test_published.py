"""The atlas: counts of every published architecture."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from archfront.search_space import accounting, published
from archfront.search_space.architecture import architecture_from, to_yaml
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.pattern import units

SOURCE = Path(__file__).parents[3] / "shared" / "atlas.yaml"
RENAMED = {"qwen3_next_80b": "qwen3_next_80b_a3b"}


@pytest.mark.parametrize("name", published.names())
def test_every_verified_figure_is_counted_exactly(name: str) -> None:
    entry = published.entry(name)
    known = entry.reference.model_dump(exclude={"verified_by"}, exclude_none=True)
    counted = published.figures(entry.architecture).model_dump()
    assert {field: counted[field] for field in known} == known


@pytest.mark.parametrize("name", published.names())
def test_the_located_weights_are_the_counted_ones(name: str) -> None:
    architecture = published.entry(name).architecture
    if architecture.encoder:
        pytest.skip("the tensors of an encoder are counted, not located")
    placed = sum(p.weight.total_count for p in accounting.located_weights(architecture))
    assert placed == accounting.parameters(architecture).total


@pytest.mark.parametrize("name", published.names())
def test_an_entry_reads_back_from_its_own_yaml(name: str) -> None:
    made = published.entry(name).architecture
    read = architecture_from(parse_document(to_yaml(made.plain()), source="x.yaml"))
    assert read == made
    assert read.key == made.key


def test_the_whole_atlas_loads_and_counts_in_two_seconds_without_torch() -> None:
    code = """
import sys, time
start = time.perf_counter()
from archfront.search_space import published
for name in published.names():
    published.figures(published.entry(name).architecture)
print(len(published.names()), time.perf_counter() - start, "torch" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, seconds, torch = ended.stdout.split()
    assert int(count) == 66
    assert torch == "False"
    assert float(seconds) < 2


@pytest.mark.skipif(not SOURCE.exists(), reason="the source of the atlas is not beside this clone")
def test_the_references_are_those_of_the_source() -> None:
    fields = {
        "kv_bytes_per_token": "kv_bytes_per_token",
        "windowed_kv_bytes_cap": "windowed_kv_bytes_cap",
        "state_bytes_per_sequence": "state_bytes_per_seq",
    }
    for model in yaml.safe_load(SOURCE.read_text())["models"]:
        entry = published.entry(RENAMED.get(model["id"], model["id"]))
        if total := model["counted"].get("formula_total"):
            assert entry.reference.total == total, entry.name
        for ours, theirs in fields.items():
            if cache := model["cache"]:
                assert getattr(entry.reference, ours) == cache[theirs], entry.name
        pattern = model["pattern"]
        decoder = pattern["decoder"] if isinstance(pattern, dict) else pattern
        changed = entry.architecture.changed(pattern=decoder)
        assert units(changed.symbols) == units(entry.architecture.symbols), entry.name


def test_the_fp8_scales_of_deepseek_v3_are_those_of_its_checkpoint() -> None:
    """41,540,496 fp32 scales: what the checkpoint holds beyond its parameters."""
    v3 = published.entry("deepseek_v3").architecture
    module = v3.changed(pattern="LE", mtp=None, blocks={s: v3.blocks[s] for s in "LE"})
    scales = [
        placed.weight.copies * accounting.scales(placed.weight.shape, v3.precision)
        for architecture in (v3, module)
        for placed in accounting.located_weights(architecture)
        if placed.format == "fp8"
    ]
    assert sum(scales) == 41_540_496


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("deepseek_v3", "deepseek_v3"),
        ("Qwen3-Next-80B-A3B", "qwen3_next_80b_a3b"),
        ("qwen3_next", "qwen3_next_80b_a3b"),
        ("deepseek", None),
        ("nothing like it", None),
    ],
)
def test_a_model_is_found_by_id_by_name_or_by_prefix(asked: str, found: str | None) -> None:
    assert published.find(asked) == found


def test_an_unknown_model_is_reported_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="the atlas has no 'lama3_8b'; did you mean 'llama3_8b'"):
        published.entry("lama3_8b")


def test_caches_follow_context_format_and_window() -> None:
    gemma = published.entry("gemma3_27b").architecture
    window = accounting.cache_bytes(gemma).windowed_kv_bytes_cap
    assert accounting.cache_bytes_at(gemma, 100_000) == 100_000 * 81_920 + window
    eight = accounting.cache_bytes_at(gemma, 1000, kv="fp8")
    assert 0.5 < eight / accounting.cache_bytes_at(gemma, 1000) < 0.52
    qwen = published.entry("qwen3.5_27b").architecture
    constant = {
        s: accounting.cache_bytes(qwen, state=s).state_bytes_per_sequence for s in ("fp32", "bf16")
    }
    assert constant == {"fp32": 153_944_064, "bf16": 78_446_592}


def test_the_cache_of_a_hybrid_equals_a_real_engines_log() -> None:
    """llama.cpp on Qwen3.5-27B, 262,144 cells and 4 sequences: 16,384 MiB KV, 598.5 MiB state."""
    counted = accounting.cache_bytes(published.entry("qwen3.5_27b").architecture)
    assert counted.kv_bytes_per_token * 262_144 == 16_384 * 2**20
    state = accounting.cache_bytes(published.entry("qwen3.5_27b").architecture, state="fp32")
    tail = state.state_bytes_per_sequence - 37_748_736 * 4
    assert 4 * (state.state_bytes_per_sequence + tail) == 598.5 * 2**20  # it keeps the tail in fp32


def test_mtp_counts_only_when_asked_for() -> None:
    glm = published.entry("glm4.5").architecture
    counts = {mtp: accounting.parameters(glm, mtp=mtp) for mtp in (False, True)}
    assert counts[True].total - counts[False].total == 3_988_069_632
    caches = {mtp: accounting.cache_bytes(glm, mtp=mtp).kv_bytes_per_token for mtp in (False, True)}
    assert caches[True] - caches[False] == caches[False] / 92
