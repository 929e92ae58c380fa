"""Initialization of a model from the weights of another one."""

from typing import Any

import pytest
import torch
from block_cases import CASES, FFN, architecture, model, text

from archfront.builders.convert import inherit, summary
from archfront.builders.model import HybridLM, build
from archfront.search_space.architecture import Architecture

ATTN = {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 8}
MOE = {"kind": "moe", "n_experts": 8, "top_k": 4, "d_expert": 40}


def built(pattern: str, *, d_model: int = 32, seed: int = 0, **blocks: Any) -> HybridLM:
    names = {"A": "*", "F": "-"}
    plain = {names.get(symbol, symbol): block for symbol, block in blocks.items()}
    fields = {"d_model": d_model, "vocab_size": 48, "pattern": pattern, "blocks": plain}
    return build(Architecture.model_validate(fields), dtype=torch.float64, seed=seed)


@pytest.mark.parametrize("name", CASES)
def test_a_child_of_the_same_shape_is_the_parent(name: str) -> None:
    parent, child = model(name), build(architecture(name), dtype=torch.float64, seed=7)
    inherited = inherit(child, parent)
    assert {one.how for one in inherited} == {"whole"}
    torch.testing.assert_close(child(text()), parent(text()))


@pytest.mark.parametrize("name", CASES)
def test_a_head_layout_covers_the_whole_axis_of_its_weight(name: str) -> None:
    made = architecture(name)
    for block in made.blocks.values():
        shapes = {weight.name: weight.shape for weight in block.weights(made.d_model)}
        for stem, layout in block.head_layout().items():
            shape = shapes.get(f"{stem}.weight") or shapes.get(stem)
            size = sum(heads * width for heads, width in layout.parts.values())
            assert shape is None or shape[layout.axis] == size, stem


class TestUpcycling:
    @pytest.mark.parametrize(
        "experts",
        [
            {"d_expert": 40, "top_k": 3},
            {"d_expert": 20, "top_k": 4},
            {"d_expert": 10, "top_k": 4, "scale": 2.5, "n_shared": 1},
        ],
    )
    def test_a_mixture_starts_as_the_dense_feed_forward(self, experts: dict[str, Any]) -> None:
        parent = built("*-", A=ATTN, F=FFN)
        child = built("*E", A=ATTN, E=MOE | experts, seed=1)
        inherit(child, parent)
        torch.testing.assert_close(child(text()), parent(text()))

    def test_split_experts_hold_different_slices(self) -> None:
        parent, child = built("-", F=FFN), built("E", E=MOE | {"d_expert": 20}, seed=1)
        inherit(child, parent)
        up = child.blocks[0].body.experts.up_proj.weight
        assert not torch.equal(up[0], up[1])
        torch.testing.assert_close(torch.cat([up[0], up[1]]), parent.blocks[0].body.up_proj.weight)


class TestAnotherMixer:
    def test_a_linear_mixer_takes_the_heads_of_attention(self) -> None:
        gdn = {"kind": "gdn", "k_heads": 4, "v_heads": 4, "k_head_dim": 8, "v_head_dim": 8}
        parent, child = built("*", A=ATTN), built("G", G=gdn, seed=1)
        inherited = {one.parameter: one for one in inherit(child, parent)}
        attention, mixer = parent.blocks[0].body, child.blocks[0].body
        q, k, v, _ = mixer.in_proj.weight.split(32)
        torch.testing.assert_close(q, attention.q_proj.weight)
        of_keys = attention.k_proj.weight.unflatten(0, (2, 8)).repeat_interleave(2, 0)
        torch.testing.assert_close(k, of_keys.flatten(0, 1))
        of_values = attention.v_proj.weight.unflatten(0, (2, 8)).repeat_interleave(2, 0)
        torch.testing.assert_close(v, of_values.flatten(0, 1))
        torch.testing.assert_close(mixer.out_proj.weight, attention.o_proj.weight)
        assert inherited["blocks.0.body.in_proj.weight"].how == "converted"
        assert inherited["blocks.0.body.A_log"].how == "fresh"

    @pytest.mark.parametrize("name", ["mamba2", "kda", "lightning", "gla", "rwkv7", "retention"])
    def test_every_linear_mixer_takes_weights_of_attention(self, name: str) -> None:
        child = build(architecture(name), dtype=torch.float64)
        inherited = inherit(child, built("*-", A=ATTN, F=FFN))
        assert summary(inherited)["converted"] >= 2
        assert child(text()).isfinite().all()


class TestOtherSizes:
    def test_fewer_heads_and_a_narrower_stream_take_the_leading_ones(self) -> None:
        gdn = {"kind": "gdn", "k_heads": 4, "v_heads": 4, "k_head_dim": 8, "v_head_dim": 8}
        small = {"kind": "gdn", "k_heads": 2, "v_heads": 2, "k_head_dim": 8, "v_head_dim": 6}
        parent, child = built("G", G=gdn), built("G", d_model=16, G=small, seed=1)
        inherit(child, parent)
        of_parent = parent.blocks[0].body.in_proj.weight.split(32)
        of_child = child.blocks[0].body.in_proj.weight.split([16, 16, 12, 12])
        for ours, theirs in zip(of_child[:2], of_parent[:2], strict=True):
            torch.testing.assert_close(ours, theirs[:16, :16])
        v = of_parent[2].unflatten(0, (4, 8))[:2, :6, :16]
        torch.testing.assert_close(of_child[2].unflatten(0, (2, 6)), v)

    def test_a_shallower_child_takes_layers_at_the_same_relative_depths(self) -> None:
        parent, child = built("(*-)x5", A=ATTN, F=FFN), built("(*-)x3", A=ATTN, F=FFN, seed=1)
        sources = {i.parameter: i.source for i in inherit(child, parent)}
        assert [sources[f"blocks.{i}.body.q_proj.weight"] for i in (0, 2, 4)] == [
            f"blocks.{i}.body.q_proj.weight" for i in (0, 4, 8)
        ]

    def test_a_deeper_child_of_a_trained_parent_has_a_lower_loss_than_a_fresh_model(self) -> None:
        parent = built("*-*-", A=ATTN, F=FFN)
        tokens = torch.arange(12).repeat(4, 4)
        optimizer = torch.optim.AdamW(parent.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            parent.loss(tokens).backward()
            optimizer.step()
        fresh, child = (built("*-*-*-", A=ATTN, F=FFN, seed=1) for _ in range(2))
        inherit(child, parent)
        assert child.loss(tokens).item() < fresh.loss(tokens).item() - 0.5
