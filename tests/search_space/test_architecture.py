"""Architectures: validation, key, YAML, precision plan."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from archfront.search_space.accounting import flops_per_token, located_weights, parameters
from archfront.search_space.architecture import Architecture, architecture_from, to_yaml
from archfront.search_space.document import InputError, parse_document

Make = Callable[..., Architecture]


def test_the_key_is_that_of_the_model_not_of_its_spelling(architecture: Make) -> None:
    assert architecture("*-*-").key == architecture("(*-)x2", name="other").key
    assert architecture("*-*-").key != architecture("*-*-*-").key


def test_yaml_gives_back_an_equal_architecture(architecture: Make) -> None:
    made = architecture("(M-G-)x2L-*EWE", precision={"fp8": ["ffn.up", "kv_cache"]})
    read = architecture_from(parse_document(to_yaml(made.plain()), source="x.yaml"))
    assert read == made
    assert read.key == made.key


def test_a_block_without_rope_is_the_same_after_yaml(architecture: Make) -> None:
    block = {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16, "rope": None}
    made = architecture("*-", blocks={"*": block})
    read = architecture_from(parse_document(to_yaml(made.plain()), source="x.yaml"))
    assert read.key == made.key


@pytest.mark.parametrize(
    ("pattern", "blocks", "message"),
    [
        ("*-", {"*": {"kind": "attn", "heads": 4, "kv_heads": 3, "head_dim": 16}}, "kv_heads must divide heads"),
        ("*-", {"*": {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 15}}, "must be even"),
        ("*-", {"*": {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 4}}, "stands for global attention.*sliding-window attention, .W."),
        ("*-", {"*": {"kind": "mamba2", "heads": 4, "head_dim": 16, "d_state": 16}}, "stands for global attention, got a block of kind mamba2"),
        ("*E", {"E": {"kind": "moe", "n_experts": 4, "top_k": 5, "d_expert": 32}}, "top_k may be at most"),
        ("G-", {"G": {"kind": "gdn", "k_heads": 3, "v_heads": 4, "k_head_dim": 16, "v_head_dim": 16}}, "k_heads must divide"),
        ("M-", {"M": {"kind": "mamba2", "heads": 4, "head_dim": 16, "d_state": 16, "groups": 3}}, "groups must divide"),
        ("[*|K]-", {}, "blocks must describe every symbol of .*, got no 'K'"),
        ("*-W2-", {}, "blocks must describe every symbol"),
    ],
)  # fmt: skip
def test_an_invalid_architecture_is_reported(
    architecture: Make, pattern: str, blocks: dict, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        architecture(pattern, blocks=blocks)


def test_a_block_that_the_pattern_never_uses_is_rejected() -> None:
    ffn = {"kind": "ffn", "width": 64}
    attention = {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16}
    with pytest.raises(ValidationError, match="every block must occur"):
        Architecture.model_validate(
            {"d_model": 64, "vocab_size": 256, "pattern": "*", "blocks": {"*": attention, "-": ffn}}
        )


def test_the_precision_plan_keeps_first_and_last_layers_and_those_before_attention(
    architecture: Make,
) -> None:
    plan = {
        "fp8": ["ffn.up", "mixer.in"],
        "keep_first_layers": 1,
        "keep_last_layers": 1,
        "keep_before_attention": True,
    }
    made = architecture("M-M-M-*-M-M-", precision=plan)
    in_fp8 = [bool(made.formats(index)) for index in range(12)]
    #                 M-           M-          M-           *-          M-          M-
    assert (
        in_fp8 == [False] * 2 + [True] * 2 + [False, True] + [True] * 2 + [True] * 2 + [False] * 2
    )


def test_a_misspelled_field_is_reported_with_its_line_and_the_nearest_name() -> None:
    text = "d_model: 64\nvocab_size: 256\npattern: '-'\nblocks:\n  '-': {kind: ffn, widht: 64}\n"
    with pytest.raises(
        InputError, match=r"a.yaml:5: blocks.-.widht: .*did you mean 'width'"
    ) as error:
        architecture_from(parse_document(text, source="a.yaml"))
    assert len(str(error.value).splitlines()) == 2  # width is missing as well


def test_a_count_of_layers_is_checked_against_the_pattern(architecture: Make) -> None:
    assert architecture("*-*-", n_layers=2).key == architecture("*-*-", n_layers=4).key
    with pytest.raises(ValidationError, match="2 layers or 4 sub-blocks, got n_layers=3"):
        architecture("*-*-", n_layers=3)


def test_a_shared_block_has_parameters_once_and_flops_per_use(architecture: Make) -> None:
    alone, shared = (
        architecture("*-*-*-", blocks={"-": {"kind": "ffn", "width": 96, "copies": copies}})
        for copies in (None, 1)
    )
    a_block = 3 * 64 * 96
    assert parameters(alone).total - parameters(shared).total == 2 * a_block
    assert flops_per_token(alone, 100) == flops_per_token(shared, 100)
    placed = sum(p.weight.total_count for p in located_weights(shared))
    assert placed == parameters(shared).total


def test_branches_count_like_blocks_with_their_gates(architecture: Make) -> None:
    one = parameters(architecture("*-")).total + parameters(architecture("M-")).total
    outer = parameters(architecture("-")).total + 64  # table, head, last norm, feed-forward; a norm
    joined = architecture("[*|M]-", joins={"[*|M]": {"fusion": "mean", "branch_gates": True}})
    assert parameters(joined).total == one - outer + 2 * 64


def test_a_join_of_an_unknown_group_is_rejected(architecture: Make) -> None:
    with pytest.raises(ValidationError, match="joins must name parallel groups"):
        architecture("*-", joins={"[*|M]": {}})


def test_the_placement_of_norms_depends_on_the_mixer_of_the_layer(architecture: Make) -> None:
    made = architecture("G-*-", norm={"of_mixer": {"*": "post"}})
    assert [made.norm_placement(index) for index in range(4)] == ["pre", "pre", "post", "post"]
