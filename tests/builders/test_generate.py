"""Text generation: greedy, sampled, batched, speculative."""

from typing import Any

import pytest
import torch

from archfront.builders.body import Unbuilt
from archfront.builders.generate import Sampling, generate, speculate
from archfront.builders.model import HybridLM, build
from archfront.search_space.architecture import Architecture

HYBRID = {
    "d_model": 32,
    "vocab_size": 40,
    "pattern": "G-W-*E",
    "blocks": {
        "G": {"kind": "gdn", "k_heads": 2, "v_heads": 2, "k_head_dim": 8, "v_head_dim": 8},
        "W": {"kind": "attn", "heads": 2, "kv_heads": 1, "head_dim": 16, "window": 5},
        "*": {"kind": "attn", "heads": 2, "kv_heads": 2, "head_dim": 16},
        "-": {"kind": "ffn", "width": 48},
        "E": {"kind": "moe", "n_experts": 4, "top_k": 2, "d_expert": 16},
    },
}


def model(**fields: Any) -> HybridLM:
    built = build(Architecture.model_validate(HYBRID | fields), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise
    return built


def prompts(batch: int = 3, tokens: int = 12) -> torch.Tensor:
    return torch.randint(40, (batch, tokens), generator=torch.Generator().manual_seed(2))


def test_greedy_generation_equals_argmax_without_a_cache() -> None:
    of, text = model(), prompts()
    found = generate(of, text, 8)
    for _ in range(8):
        text = torch.cat([text, of(text)[:, -1:].argmax(-1)], 1)
    assert found.tolist() == text[:, 12:].tolist()


def test_prompts_of_unequal_length_are_independent() -> None:
    of, text, lengths = model(), prompts(), [12, 3, 7]
    found = generate(of, text, 6, lengths_B=torch.tensor(lengths))
    alone = [generate(of, text[i : i + 1, :n], 6)[0] for i, n in enumerate(lengths)]
    assert found.tolist() == torch.stack(alone).tolist()


def test_sampling_is_determined_by_the_seed() -> None:
    of, hot = model(), Sampling(temperature=1.0)
    first, again, other = (
        generate(of, prompts(), 10, sampling=hot, seed=seed).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_row_repeats_its_end_token() -> None:
    of, text = model(), prompts(batch=1)
    third = generate(of, text, 3)[0, 2].item()
    found = generate(of, text, 30, end=third)
    assert found.shape[1] <= 3
    assert found[0, -1] == third


def test_top_k_and_top_p_keep_the_most_probable_tokens() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert (Sampling(temperature=1.0, top_k=2).probabilities(logits) > 0).tolist() == [
        [True, True, False, False]
    ]
    # 0.64, 0.24, 0.09, 0.03: the first two make up 0.8
    assert (Sampling(temperature=1.0, top_p=0.8).probabilities(logits) > 0).tolist() == [
        [True, True, False, False]
    ]
    assert Sampling(temperature=1.0, top_p=0.8).probabilities(logits).sum().item() == pytest.approx(
        1
    )


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}])
def test_sampling_settings_out_of_range_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sampling requires"):
        Sampling(**wrong)


class TestSpeculation:
    @pytest.mark.parametrize("depth", [1, 3])
    @pytest.mark.parametrize("length", [1, 12])
    def test_speculative_text_equals_greedy_text(self, depth: int, length: int) -> None:
        of = model(mtp={"depth": depth, "pattern": "*-"})
        prompt = prompts(batch=1, tokens=length)
        drafted = speculate(of, prompt[0], 25)
        assert drafted.tokens_N.tolist() == generate(of, prompt, 25)[0].tolist()
        assert all(0 <= accepted <= depth for accepted in drafted.accepted)

    def test_trained_modules_save_passes(self) -> None:
        of = build(Architecture.model_validate(HYBRID | {"mtp": {"depth": 2, "pattern": "*-"}}))
        text = torch.arange(8).repeat(4, 6)
        optimizer = torch.optim.AdamW(of.parameters(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            of.loss(text).backward()
            optimizer.step()
        drafted = speculate(of, text[0, :10], 24)
        assert drafted.tokens_N.tolist() == [(10 + i) % 8 for i in range(24)]
        assert drafted.tokens_per_pass > 2.5

    def test_a_model_without_modules_raises(self) -> None:
        with pytest.raises(Unbuilt, match="needs MTP modules"):
            speculate(model(), prompts()[0], 5)
