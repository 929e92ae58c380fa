"""The whole model: parameters, norms, seeds, training, FP8 placement, losses."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from archfront.builders.body import Pass, text_positions
from archfront.builders.model import HybridLM, build
from archfront.kernels.rows import op as rows
from archfront.kernels.rows import reference
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
    """Output of a body or sub-block on its own."""
    return part(x, Pass(positions_BT=start + text_positions(*x.shape[:2], x.device)), cache)


def assert_counted(model: HybridLM, counted: Architecture) -> None:
    expected = {}
    for located in located_weights(counted):
        name = located.weight.name
        if located.sub_block is not None:
            inside = name if name in ("norm_in.weight", "norm_out.weight") else f"body.{name}"
            name = f"blocks.{located.sub_block}.{inside}"
        expected[name] = located.weight.total_count
    assert {name: weight.numel() for name, weight in model.named_parameters()} == expected


@pytest.mark.parametrize("symbol", BLOCKS)
def test_a_block_has_the_counted_parameters(symbol: str) -> None:
    counted = architecture(symbol)
    assert_counted(build(counted), counted)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_norms_and_head_have_the_counted_parameters(placement: str, tied: bool) -> None:
    counted = architecture(norm={"placement": placement}, tied_embeddings=tied)
    assert_counted(build(counted), counted)


def test_all_experts_share_one_parameter() -> None:
    weight = build(architecture("E")).blocks[0].body.experts.gate_proj.weight
    assert weight.shape == (4, 32, 48)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_norms_follow_the_placement(placement: str) -> None:
    model = build(architecture("-", norm={"placement": placement, "eps": 1e-5}))
    block, x = model.blocks[0], torch.randn(1, 3, 48)

    def norm(y: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(y, (48,), eps=1e-5)

    inside = run(block.body, x if placement == "post" else norm(x))
    expected = x + (inside if placement == "pre" else norm(inside))
    torch.testing.assert_close(model.hidden(x), norm(expected))


def test_a_tied_head_multiplies_by_the_embedding() -> None:
    model = build(architecture("-", tied_embeddings=True))
    hidden = model.hidden(model.embedding(tokens()))
    torch.testing.assert_close(model(tokens()), hidden @ model.embedding.weight.mT)


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_decoding_equals_the_logits_of_the_whole_text(placement: str) -> None:
    model = build(architecture(norm={"placement": placement}), dtype=torch.float64)
    text = tokens()
    expected = model(text)
    logits, caches = model.prefill(text[:, :50])
    torch.testing.assert_close(logits, expected[:, 49])
    for t in range(50, 70):
        logits, caches = model.step(text[:, t], caches)
        torch.testing.assert_close(logits, expected[:, t])


def test_weights_are_determined_by_the_seed() -> None:
    first, again, other = (build(architecture(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_building_leaves_the_global_random_state_unchanged() -> None:
    before = torch.get_rng_state()
    build(architecture())
    assert torch.equal(before, torch.get_rng_state())


def test_a_state_dict_restores_the_model() -> None:
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
    assert losses[0] == pytest.approx(3.47, abs=0.2)  # ln 32: uniform predictions
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
def test_fp8_changes_only_the_sub_blocks_of_its_plan(role: str, recipe: str) -> None:
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
def test_fp8_trains_every_weight_and_stays_close(recipe: str) -> None:
    everywhere = {"fp8": [*ROLES, "lm_head", "kv_cache"], "recipe": recipe}
    plain, fp8 = build(architecture()), build(architecture(precision=everywhere))
    exact, near = plain(tokens()), fp8(tokens())
    near.square().sum().backward()
    assert 0.001 < ((near - exact).norm() / exact.norm()).item() < 0.15
    assert all(weight.grad is not None for weight in fp8.parameters())


def test_absorbed_and_expanded_latent_attention_round_to_fp8_alike() -> None:
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


def test_the_loss_is_the_mean_over_all_tokens_but_a_documents_first() -> None:
    model = build(architecture(final_logit_softcap=3.0, logit_scale=2.0), dtype=torch.float64)
    text, lengths = tokens(batch=1), (30, 1, 39)
    segment_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    nats = [
        F.cross_entropy(model(part)[0, :-1], part[0, 1:], reduction="none")
        for part in text.split(lengths, 1)
    ]
    torch.testing.assert_close(model.loss(text, segment_ids), torch.cat(nats).mean())


def test_mtp_modules_add_the_loss_of_later_tokens() -> None:
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


def test_cu_seqlens_equal_segment_ids() -> None:
    model, text = build(architecture(), dtype=torch.float64), tokens(batch=1)
    segment_ids = torch.repeat_interleave(torch.arange(3), torch.tensor((30, 1, 39)))[None]
    cu_seqlens = torch.tensor((0, 30, 31, 70), dtype=torch.int32)
    expected, found = model(text, segment_ids), model(text, cu_seqlens=cu_seqlens)
    assert torch.equal(found, expected)
    assert torch.equal(
        model.loss(text, cu_seqlens=cu_seqlens), model.loss(text, segment_ids=segment_ids)
    )


@pytest.mark.parametrize(
    ("batch", "segment_ids"), [(2, None), (1, torch.zeros(1, 70, dtype=torch.int32))]
)
def test_cu_seqlens_of_several_rows_or_beside_segment_ids_raise(
    batch: int, segment_ids: torch.Tensor | None
) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        build(architecture("-"))(
            tokens(batch=batch), segment_ids, cu_seqlens=torch.tensor((0, 30, 70))
        )


def test_a_residual_sum_runs_in_the_kernel_of_the_next_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = []

    def recorded(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sums.append(args)
        return reference.add_rms_norm(*args)

    monkeypatch.setattr(rows, "add_rms_norm", recorded)
    build(architecture("*-*-"))(tokens())
    assert len(sums) == 4  # in front of three sub-blocks and of the final norm


def test_advancing_a_stream_equals_the_sums_of_its_sub_blocks() -> None:
    model = build(architecture("G-*E", norm={"placement": "sandwich"}), dtype=torch.float64)
    x = model.embed(tokens())
    for block in model.blocks:
        x = run(block, x)
    torch.testing.assert_close(model.hidden(model.embed(tokens())), model.norm(x))
