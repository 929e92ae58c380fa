"""Models equal those of transformers: the same logits with the same weights.

The classes of transformers compute norms, softmaxes, routers, rotations and recurrences in float32.
Here each of them runs in float64 instead, so that only its last bits may differ: another gate,
epsilon or norm placement shows at once.
"""

import re
import sys
from functools import cache
from inspect import isfunction
from types import ModuleType

import pytest
import torch
from block_cases import D_MODEL, MOE, VOCAB
from float64 import assert_same, draw, in_float64
from oracle_cases import CASES
from oracle_weights import FAMILIES, moved
from torch import Tensor, nn

from archfront.builders.body import Pass, text_positions
from archfront.builders.model import HybridLM, build
from archfront.builders.moe import MoE
from archfront.search_space.architecture import Architecture
from archfront.search_space.hugging_face.convert import write_config
from archfront.search_space.hugging_face.registry import FAMILIES as HF_FAMILIES

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
longcat = pytest.importorskip("transformers.models.longcat_flash.modeling_longcat_flash")
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, TOKENS, READ = 2, 40, 21
WITHOUT_CLASS = {"rwkv7", "kimi_k3"}
NO_DECODER = {"switch_transformers"}


@cache
def pair(name: str) -> tuple[nn.Module, HybridLM]:
    """The model of transformers with weights of size one, and ours with the same weights."""
    case = CASES[name]
    ours = build(case.architecture(), dtype=torch.float64)
    config = write_config(ours.architecture, case.family) | {"pad_token_id": None}
    kind = getattr(transformers, config["architectures"][0])
    _use_torch_functions(sys.modules[kind.__module__])
    with in_float64():
        made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config | case.config)
        made._attn_implementation = made._experts_implementation = "eager"
        theirs = kind(made).double().eval()
        corrections = [b for path, b in theirs.named_buffers() if "correction_bias" in path]
        for weight in (*theirs.parameters(), *corrections):
            draw(weight)
        for path, weight in theirs.named_parameters():
            if re.search(case.even, path):
                weight.fill_(0.7)
        _copy_hash_table(theirs, ours)
        ours.load_state_dict(moved(theirs, ours, FAMILIES[case.family]))
    return theirs, ours


def _use_torch_functions(module: ModuleType) -> None:
    """Undo the replacement by fla-core's kernels, which need a GPU, where it is installed."""
    for name, function in [*vars(module).items()]:
        if isfunction(function) and hasattr(function, "__wrapped__"):
            setattr(module, name, function.__wrapped__)


def _copy_hash_table(theirs: nn.Module, ours: HybridLM) -> None:
    """Write the experts that our hash router computes into the table of theirs."""
    hashing = [m for m in ours.modules() if isinstance(m, MoE) and m.block.router == "hash"]
    for path, table in theirs.named_buffers():
        if path.endswith("tid2eid"):
            ids = torch.arange(len(table))[None]
            table.copy_(hashing[0].router.hashed_experts(Pass(positions_BT=ids, tokens_BT=ids)))


def text(ours: HybridLM) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(ours.architecture.vocab_size, (BATCH, TOKENS), generator=generator)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str) -> None:
    theirs, ours = pair(name)
    with in_float64():
        expected = theirs(input_ids=text(ours), use_cache=False).logits
    assert_same(ours(text(ours)), expected)


@pytest.mark.parametrize("name", CASES)
def test_decoding_equals_that_of_transformers(name: str) -> None:
    theirs, ours = pair(name)
    tokens_BT, expected = text(ours), []
    own_kind = CASES[name].family == "minimax"  # creates its own kind of cache
    memory = None if own_kind else transformers.DynamicCache(config=theirs.config)
    with in_float64():
        for part in tokens_BT.split([READ] + [1] * (TOKENS - READ), 1):
            given = theirs(input_ids=part, cache=memory, use_cache=True)
            memory = given.get("cache", memory)
            expected.append(given.logits[:, -1])
    logits_BV, caches = ours.prefill(tokens_BT[:, :READ])
    found = [logits_BV]
    for t in range(READ, TOKENS):
        logits_BV, caches = ours.step(tokens_BT[:, t], caches)
        found.append(logits_BV)
    assert_same(torch.stack(found), torch.stack(expected))


def test_zero_experts_equal_those_of_longcat_flash() -> None:
    """The mixture alone, without its correction bias: its stack has no equivalent here."""
    zero = MOE | {"n_zero": 3, "top_k": 3, "norm_topk": False, "scale": 1.7}
    plain = {"d_model": D_MODEL, "vocab_size": VOCAB, "pattern": "E", "blocks": {"E": zero}}
    ours = build(Architecture.model_validate(plain), dtype=torch.float64).blocks[0].body
    config = transformers.LongcatFlashConfig(
        hidden_size=D_MODEL,
        expert_ffn_hidden_size=zero["d_expert"],
        n_routed_experts=zero["n_experts"],
        zero_expert_num=zero["n_zero"],
        moe_topk=zero["top_k"],
        routed_scaling_factor=zero["scale"],
    )
    own = ours.experts
    with in_float64():
        theirs = longcat.LongcatFlashMoE(config).double()
        theirs.router.classifier.weight.copy_(ours.router.weight.normal_())
        fused = torch.cat([own.gate_proj.weight, own.up_proj.weight], 1)
        theirs.experts.gate_up_proj[: len(fused)] = fused
        theirs.experts.down_proj.copy_(own.down_proj.weight)
        x = torch.randn(BATCH, TOKENS, D_MODEL)
        expected = theirs(x)
    assert_same(ours(x, Pass(positions_BT=text_positions(BATCH, TOKENS, x.device))), expected)


def test_every_family_with_a_class_is_tested() -> None:
    compared = {case.family for case in CASES.values()}
    assert compared == HF_FAMILIES.keys() - WITHOUT_CLASS - NO_DECODER
