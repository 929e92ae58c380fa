"""The contract of every block: causality, decoding equal to a whole pass, gradients, counts."""

import pytest
import torch
from block_cases import CASES, D_MODEL, TOKENS, VOCAB, architecture, model, text

from archfront.builders.model import HybridLM, build
from archfront.search_space.accounting import cache_bytes_at, parameters

PACKED = (41, 1, 64, 44)  # lengths of the documents in a packed row


def hidden(
    of: HybridLM, tokens: torch.Tensor, segment_ids: torch.Tensor | None = None
) -> torch.Tensor:
    return of.hidden(of.embed(tokens), tokens, segment_ids)


def changed_at(tokens: torch.Tensor, position: int) -> torch.Tensor:
    other = tokens.clone()
    other[:, position] = (other[:, position] + 7) % VOCAB
    return other


@pytest.mark.parametrize("name", CASES)
class TestEveryBlock:
    @torch.no_grad()
    def test_a_later_token_does_not_change_earlier_outputs(self, name: str) -> None:
        of, tokens = model(name), text()
        before, after = hidden(of, tokens), hidden(of, changed_at(tokens, 101))
        torch.testing.assert_close(after[:, :101], before[:, :101])
        assert (after[:, 101] - before[:, 101]).abs().max() > 1e-3

    @pytest.mark.parametrize("read", [1, 71])
    def test_prefill_and_steps_equal_forward(self, name: str, read: int) -> None:
        of, tokens = model(name), text()
        expected = of(tokens)
        logits, caches = of.prefill(tokens[:, :read])
        found = [logits]
        for t in range(read, TOKENS):
            logits, caches = of.step(tokens[:, t], caches)
            found.append(logits)
        torch.testing.assert_close(torch.stack(found, 1), expected[:, read - 1 :])

    def test_extending_by_several_tokens_equals_one_pass(self, name: str) -> None:
        of, tokens = model(name), text(tokens=60)
        caches = of.new_caches(2)
        found = [of.read(tokens[:, a:b], caches) for a, b in ((0, 1), (1, 38), (38, 43), (43, 60))]
        torch.testing.assert_close(torch.cat(found, 1), hidden(of, tokens))

    def test_rows_of_unequal_length_decode_independently(self, name: str) -> None:
        of, tokens = model(name), text(batch=3, tokens=60)
        lengths = torch.tensor([60, 1, 37])
        logits, caches = of.prefill(tokens, lengths)
        following, _ = of.step(tokens[:, 0], caches)
        for row, length in enumerate(lengths.tolist()):
            alone, cache = of.prefill(tokens[row : row + 1, :length])
            torch.testing.assert_close(logits[row : row + 1], alone)
            then, _ = of.step(tokens[row : row + 1, 0], cache)
            torch.testing.assert_close(following[row : row + 1], then)

    @torch.no_grad()
    def test_rows_of_a_batch_are_independent(self, name: str) -> None:
        of, tokens = model(name), text()
        torch.testing.assert_close(hidden(of, tokens)[1:], hidden(of, tokens[1:]))

    @torch.no_grad()
    def test_packed_documents_equal_separate_rows(self, name: str) -> None:
        of, tokens = model(name), text()
        number = torch.repeat_interleave(torch.arange(len(PACKED)), torch.tensor(PACKED))
        apart = [hidden(of, document) for document in tokens.split(PACKED, 1)]
        found = hidden(of, tokens, number.expand(2, -1))
        torch.testing.assert_close(found, torch.cat(apart, 1))

    def test_gradients_in_float32_equal_those_in_float64(self, name: str) -> None:
        exact = model(name)
        near = build(architecture(name)).eval()
        near.load_state_dict(exact.state_dict())
        slope = torch.randn(2, TOKENS, D_MODEL, generator=torch.Generator().manual_seed(3))
        for of in (exact, near):
            (hidden(of, text()) * slope).sum().backward()
        gradients = [p.grad.norm() for p in exact.parameters() if p.grad is not None]
        least = 1e-3 * torch.stack(gradients).norm()  # smaller gradients are rounding
        for (name_, far), close in zip(exact.named_parameters(), near.parameters(), strict=True):
            if far.grad is None:
                assert close.grad is None, name_
                continue
            assert close.grad is not None, name_
            error = (close.grad - far.grad).norm() / far.grad.norm().clamp(min=least)
            assert error < 1e-3, name_

    def test_large_inputs_give_finite_outputs_and_gradients(self, name: str) -> None:
        of = model(name, torch.float32, norm={"placement": "post"})
        x = (100 * torch.randn(2, TOKENS, D_MODEL)).requires_grad_()
        y = of.hidden(x, text())
        (y * torch.randn(y.shape)).sum().backward()
        gradients = [x.grad, *(p.grad for p in of.blocks.parameters())]
        assert y.isfinite().all()
        assert all(g is None or g.isfinite().all() for g in gradients)

    def test_caches_have_the_counted_bytes(self, name: str) -> None:
        of = model(name, torch.bfloat16)
        _, caches = of.prefill(text())
        held = sum(tensor.nbytes for tensor in caches.tensors())
        assert held == 2 * cache_bytes_at(architecture(name), TOKENS)

    def test_random_caches_have_the_size_of_real_ones(self, name: str) -> None:
        of = model(name, torch.bfloat16)
        caches = of.fill_random(2, TOKENS)
        held = sum(tensor.nbytes for tensor in caches.tensors())
        assert held == 2 * cache_bytes_at(architecture(name), TOKENS)
        logits, _ = of.step(text()[:, 0], caches)
        assert logits.isfinite().all()

    def test_the_model_has_the_counted_parameters(self, name: str) -> None:
        counted = build(architecture(name), device="meta")
        assert sum(p.numel() for p in counted.parameters()) == parameters(architecture(name)).total

    def test_a_state_dict_restores_the_model(self, name: str) -> None:
        source, target = model(name), build(architecture(name), dtype=torch.float64).eval()
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(text()), source(text()))
