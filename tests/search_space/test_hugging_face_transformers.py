"""Our config.json files in transformers' own classes: they have the parameters that we count."""

import json
import re
from typing import Any

import pytest
import torch

from archfront.search_space import accounting, published
from archfront.search_space.architecture import Architecture
from archfront.search_space.hugging_face.convert import (
    FAMILIES,
    Imported,
    read_config,
    write_config,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore")

WITHOUT_CLASS = ("rwkv7", "kimi_k3")
UNSAID = ("gshard_600b", "moba_llama_8b", "switch_base_128")
OWN_CLASS = {"qwen3.5_35b_a3b": "qwen3_5_moe_text", "qwen3.5_397b_a17b": "qwen3_5_moe_text"}
# Fields without which a class cannot build its own defaults, or which ours cannot express.
NEEDED: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe": {"head_dim": 128},
    "glm4_moe": {"head_dim": 128},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
}


def shallow(name: str) -> Architecture:
    """An entry at full width, each repeated part of its stack once."""
    architecture = published.entry(name).architecture
    plain = architecture.plain() | {"pattern": re.sub(r"x\d+", "x1", architecture.pattern)}
    if name == "phi3.5_moe":  # whose class wants the factors of longrope, which the entry lacks
        plain["blocks"]["*"]["rope"].pop("scaling")
    return Architecture.model_validate(plain)


def built(config: dict[str, Any], model_class: str) -> tuple[int, list[Imported]]:
    """The parameters of the class's model, and what its config says, in full and as it is saved."""
    made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    if hasattr(made, "quantization_config"):  # its classes are built in bfloat16 first
        del made.quantization_config
    with torch.device("meta"):
        model = getattr(transformers, model_class)(made)
    told = [read(made.to_json_string(use_diff=brief)) for brief in (False, True)]
    return sum(p.numel() for p in model.parameters()), told


def read(text: str) -> Imported:
    return read_config(text, source="config.json")


SAID = {
    name: config
    for name in published.names()
    if name not in UNSAID
    for config in [write_config(shallow(name), OWN_CLASS.get(name))]
    if config["model_type"] not in WITHOUT_CLASS
}


@pytest.mark.parametrize("name", SAID)
def test_the_class_builds_what_we_count_and_saves_what_we_wrote(name: str) -> None:
    architecture, config = shallow(name), SAID[name]
    count, told = built(config, config["architectures"][0])
    assert count == accounting.parameters(architecture).total
    kept = {"precision": architecture.precision, "mtp": architecture.mtp}  # it has neither
    for said in told:
        assert said.architecture.changed(**kept).key == architecture.key
        assert said.not_expressed == ()


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in WITHOUT_CLASS])
def test_our_defaults_are_those_of_the_class(model_type: str) -> None:
    config = {"model_type": model_type} | NEEDED.get(model_type, {})
    count, told = built(config, FAMILIES[model_type].model_class)
    architecture = read(json.dumps(config)).architecture
    assert count == accounting.parameters(architecture).total
    assert [said.architecture.key for said in told] == [architecture.key] * 2


@pytest.mark.parametrize("model_type", ["gemma3", "llama4", "qwen3_5", "qwen3_5_moe"])
def test_the_text_tower_of_a_multimodal_class_is_its_text_class(model_type: str) -> None:
    made = transformers.CONFIG_MAPPING[model_type]()
    told = [read(part.to_json_string(use_diff=False)) for part in (made, made.text_config)]
    assert told[0].architecture.key == told[1].architecture.key
