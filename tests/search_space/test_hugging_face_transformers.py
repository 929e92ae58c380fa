"""Written config.json files in transformers' classes: same parameter counts, same configs."""

import json
import re
from typing import Any

import pytest
import torch

from archfront.search_space import accounting, published
from archfront.search_space.architecture import Architecture
from archfront.search_space.hugging_face.convert import Imported, read_config, write_config
from archfront.search_space.hugging_face.registry import FAMILIES

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore")

WITHOUT_CLASS = ("rwkv7", "kimi_k3")
NOT_EXPRESSIBLE = ("gshard_600b", "moba_llama_8b", "switch_base_128")
OWN_FAMILY = {"qwen3.5_35b_a3b": "qwen3_5_moe_text", "qwen3.5_397b_a17b": "qwen3_5_moe_text"}
# Fields that a class needs besides its defaults to be built and to be expressible.
NEEDED: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe": {"head_dim": 128},
    "glm4_moe": {"head_dim": 128},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
}


def shallow(name: str) -> Architecture:
    """An entry at full width, with each repeated group of layers once."""
    architecture = published.entry(name).architecture
    plain = architecture.plain() | {"pattern": re.sub(r"x\d+", "x1", architecture.pattern)}
    if name == "phi3.5_moe":  # its class needs the longrope factors, which the entry lacks
        plain["blocks"]["*"]["rope"].pop("scaling")
    return Architecture.model_validate(plain)


def built(config: dict[str, Any], model_class: str) -> tuple[int, list[Imported]]:
    """The parameter count of the class's model, and its config read back, in full and as a diff."""
    made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    if hasattr(made, "quantization_config"):  # models are built unquantized
        del made.quantization_config
    with torch.device("meta"):
        model = getattr(transformers, model_class)(made)
    imported = [read(made.to_json_string(use_diff=diff)) for diff in (False, True)]
    return sum(p.numel() for p in model.parameters()), imported


def read(text: str) -> Imported:
    return read_config(text, source="config.json")


CONFIGS = {
    name: config
    for name in published.names()
    if name not in NOT_EXPRESSIBLE
    for config in [write_config(shallow(name), OWN_FAMILY.get(name))]
    if config["model_type"] not in WITHOUT_CLASS
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_class_has_the_parameters_we_count_and_saves_the_config_we_wrote(name: str) -> None:
    architecture, config = shallow(name), CONFIGS[name]
    count, imported = built(config, config["architectures"][0])
    assert count == accounting.parameters(architecture).total
    kept = {"precision": architecture.precision, "mtp": architecture.mtp}  # the class saves neither
    for result in imported:
        assert result.architecture.changed(**kept).key == architecture.key
        assert result.not_expressed == ()


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in WITHOUT_CLASS])
def test_our_defaults_are_those_of_the_class(model_type: str) -> None:
    config = {"model_type": model_type} | NEEDED.get(model_type, {})
    count, imported = built(config, FAMILIES[model_type].model_class)
    architecture = read(json.dumps(config)).architecture
    assert count == accounting.parameters(architecture).total
    assert [result.architecture.key for result in imported] == [architecture.key] * 2


@pytest.mark.parametrize("model_type", ["gemma3", "llama4", "qwen3_5", "qwen3_5_moe"])
def test_a_multimodal_class_reads_as_its_text_class(model_type: str) -> None:
    made = transformers.CONFIG_MAPPING[model_type]()
    whole, text = (read(c.to_json_string(use_diff=False)) for c in (made, made.text_config))
    assert whole.architecture.key == text.architecture.key
