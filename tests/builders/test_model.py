"""The whole model: its parameters, its norms, its seeds, its learning, its FP8 placement."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from archfront.builders.body import Pass, text_positions
from archfront.builders.model import HybridLM, build
from archfront.search_space.accounting import located_weights, parameters
from archfront.search_space.architecture import Architecture

ATTN = {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16}
BLOCKS: dict[str, dict[str, Any]] = {
    "*": ATTN,
    "*1": ATTN | {"qk_norm": "head", "sinks": True},
    "W": ATTN | {"window": 8, "rope": {"partial": 0.5}},
    "L": {
        "kind": "mla",
        "heads": 2,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    "M": {"kind": "mamba2", "heads": 4, "head_dim": 16, "d_state": 16},
    "G": {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 16, "v_head_dim": 16},
    "-": {"kind": "ffn", "width": 64},
    "-1": {"kind": "ffn", "width": 64, "activation": "relu2"},
    "E": {"kind": "moe", "n_experts": 4, "top_k": 2, "d_expert": 32, "n_shared": 1},
    "E1": {"kind": "moe", "n_experts": 1, "top_k": 1, "d_expert": 32, "router": "sigmoid_bias"},
}
BLOCKS["E2"] = BLOCKS["E"] | {"router": "sigmoid_bias"}
BLOCKS["L1"] = BLOCKS["L"] | {"q_lora_rank": 16}
BLOCKS["M1"] = BLOCKS["M"] | {"groups": 2}
HYBRID = "G-M-W-LE*E2"


def architecture(pattern: str = HYBRID, **fields: Any) -> Architecture:
    used = {symbol: block for symbol, block in BLOCKS.items() if symbol in symbols(pattern)}
    plain = {"d_model": 48, "vocab_size": 32, "pattern": pattern, "blocks": used}
    return Architecture.model_validate(plain | fields)


def symbols(pattern: str) -> set[str]:
    return {a + b if b.isdigit() else a for a, b in zip(pattern, pattern[1:] + " ", strict=True)}


def tokens(batch: int = 2, length: int = 70) -> torch.Tensor:
    return torch.randint(32, (batch, length), generator=torch.Generator().manual_seed(0))


def run(
    part: torch.nn.Module, x: torch.Tensor, cache: Any = None, *, start: int = 0
) -> torch.Tensor:
    """A body or sub-block on its own."""
    return part(x, Pass(positions_BT=start + text_positions(*x.shape[:2], x.device)), cache)


def assert_counted(model: HybridLM, counted: Architecture) -> None:
    expected = {}
    for placed in located_weights(counted):
        name = placed.weight.name
        if placed.sub_block is not None:
            inside = name if name in ("norm_in.weight", "norm_out.weight") else f"body.{name}"
            name = f"blocks.{placed.sub_block}.{inside}"
        expected[name] = placed.weight.total_count
    assert {name: weight.numel() for name, weight in model.named_parameters()} == expected


@pytest.mark.parametrize("symbol", BLOCKS)
def test_parameters_are_those_that_accounting_counts(symbol: str) -> None:
    counted = architecture(symbol)
    assert_counted(build(counted), counted)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_norms_and_head_are_counted(placement: str, tied: bool) -> None:
    counted = architecture(norm={"placement": placement}, tied_embeddings=tied)
    assert_counted(build(counted), counted)


def test_a_stack_of_experts_is_one_parameter() -> None:
    weight = build(architecture("E")).blocks[0].body.experts.gate_proj.weight
    assert weight.shape == (4, 32, 48)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_norms_stand_where_the_placement_says(placement: str) -> None:
    model = build(architecture("-", norm={"placement": placement, "eps": 1e-5}))
    block, x = model.blocks[0], torch.randn(1, 3, 48)

    def norm(y: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(y, (48,), eps=1e-5)

    inside = run(block.body, x if placement == "post" else norm(x))
    expected = x + (inside if placement == "pre" else norm(inside))
    torch.testing.assert_close(model.hidden(x), norm(expected))


def test_a_tied_head_reads_the_embedding() -> None:
    model = build(architecture("-", tied_embeddings=True))
    hidden = model.hidden(model.embedding(tokens()))
    torch.testing.assert_close(model(tokens()), hidden @ model.embedding.weight.mT)


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_decoding_gives_the_logits_of_the_whole_text(placement: str) -> None:
    model = build(architecture(norm={"placement": placement}), dtype=torch.float64)
    text = tokens()
    expected = model(text)
    logits, caches = model.prefill(text[:, :50])
    torch.testing.assert_close(logits, expected[:, 49])
    for t in range(50, 70):
        logits, caches = model.step(text[:, t], caches)
        torch.testing.assert_close(logits, expected[:, t])


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    first, again, other = (build(architecture(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build(architecture())
    assert torch.equal(before, torch.get_rng_state())


def test_a_state_dict_carries_the_model() -> None:
    source, target = build(architecture(), seed=1), build(architecture(), seed=2)
    source(tokens())
    source.rebalance(rate=0.5)
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(tokens()), source(tokens()))


def test_a_meta_model_has_shapes_and_no_storage() -> None:
    large = architecture(d_model=4096, vocab_size=131_072)
    model = build(large, device="meta", dtype=torch.bfloat16)
    assert all(weight.is_meta for weight in model.parameters())
    assert sum(weight.numel() for weight in model.parameters()) == parameters(large).total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_falls_on_a_repeated_sequence(dtype: torch.dtype) -> None:
    model = build(architecture(), dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = tokens(batch=1, length=8).repeat(4, 9)
    losses = []
    for _ in range(30):
        logits = model(text[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + 0.01 * model.balance_loss()).backward()
        optimizer.step()
        model.rebalance()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(3.47, abs=0.2)  # ln 32: it starts knowing nothing
    assert losses[-1] < 0.3 * losses[0]
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_balance_loss_sums_over_softmax_routers() -> None:
    model = build(architecture("*E-E*E"))
    model(tokens())
    losses = [model.blocks[index].body.balance_loss for index in (1, 3, 5)]
    torch.testing.assert_close(model.balance_loss(), sum(losses))
    assert model.balance_loss().item() == pytest.approx(3, abs=0.3)
    assert build(architecture("-")).balance_loss().item() == 0


ROLES = {
    "attention.qkv": {"q_proj", "k_proj", "v_proj", "kv_a_proj", "kv_b_proj"},
    "attention.out": {"o_proj"},
    "mixer.in": {"in_proj"},
    "mixer.out": {"out_proj"},
    "ffn.up": {"gate_proj", "up_proj"},
    "ffn.down": {"down_proj"},
    "experts": {"gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "blockwise"])
@pytest.mark.parametrize("role", [*ROLES, "lm_head", "kv_cache"])
def test_fp8_changes_the_sub_blocks_it_is_placed_in_and_no_other(role: str, recipe: str) -> None:
    pattern = "G-M-W-LE*-"
    plan = {"fp8": [role], "recipe": recipe, "keep_first_layers": 1, "keep_last_layers": 1}
    plain, placed = build(architecture(pattern)), architecture(pattern, precision=plan)
    fp8, x = build(placed), torch.randn(2, 9, 48)
    for index, body in enumerate(placed.bodies):
        roles = {weight.role for weight in body.block.weights(48)}
        if body.block.kind in ("attn", "mla"):
            roles.add("kv_cache")
        changed = not torch.equal(run(plain.blocks[index], x), run(fp8.blocks[index], x))
        assert changed == (role in roles and 2 <= index < 8), body.symbol
    head_changed = not torch.equal(plain.lm_head(x), fp8.lm_head(x))
    assert head_changed == (role == "lm_head")


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "blockwise"])
def test_fp8_trains_every_weight_and_stays_near(recipe: str) -> None:
    everywhere = {"fp8": [*ROLES, "lm_head", "kv_cache"], "recipe": recipe}
    plain, fp8 = build(architecture()), build(architecture(precision=everywhere))
    exact, near = plain(tokens()), fp8(tokens())
    near.square().sum().backward()
    assert 0.001 < ((near - exact).norm() / exact.norm()).item() < 0.15
    assert all(weight.grad is not None for weight in fp8.parameters())


def test_absorbed_latent_attention_sees_the_fp8_factors_of_the_expanded_form() -> None:
    plan = {"fp8": ["attention.qkv", "kv_cache"], "recipe": "rowwise"}
    body = build(architecture("L", precision=plan), dtype=torch.float64).blocks[0].body
    exact = build(architecture("L"), dtype=torch.float64).blocks[0].body
    x = torch.randn(2, 20, 48, dtype=torch.float64)
    with torch.no_grad():
        cache = body.new_cache(2)
        places = [(0, 10), *((t, t + 1) for t in range(10, 20))]
        y = torch.cat([run(body, x[:, a:b], cache, start=a) for a, b in places], 1)
        whole = run(body, x)
        rounding = (whole - run(exact, x)).norm()
    assert (y - whole).norm() < 0.01 * rounding


def test_the_loss_is_the_mean_over_the_tokens_of_each_document_but_its_first() -> None:
    model = build(architecture(final_logit_softcap=3.0, logit_scale=2.0), dtype=torch.float64)
    text, lengths = tokens(batch=1), (30, 1, 39)
    segment_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    nats = [
        F.cross_entropy(model(part)[0, :-1], part[0, 1:], reduction="none")
        for part in text.split(lengths, 1)
    ]
    torch.testing.assert_close(model.loss(text, segment_ids), torch.cat(nats).mean())


def test_the_loss_of_mtp_modules_is_of_the_tokens_further_on() -> None:
    model = build(architecture("G-*-", mtp={"depth": 2, "pattern": "*-"}), dtype=torch.float64)
    text = tokens()
    alone = F.cross_entropy(model(text)[:, :-1].flatten(0, 1), text[:, 1:].flatten())
    hidden, losses = model.hidden(model.embed(text), text), []
    for k, module in enumerate(model.mtp, 1):
        part = Pass(positions_BT=text_positions(2, 70 - k, text.device), whole_rows=True)
        hidden = module(hidden[:, : 70 - k], model.embed(text[:, k:]), part)
        logits = model.logits(hidden[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), text[:, k + 1 :].flatten()))
    torch.testing.assert_close(model.loss(text), alone + 0.3 * sum(losses) / 2)
