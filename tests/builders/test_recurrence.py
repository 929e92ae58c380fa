"""The chunked recurrence against the same recurrence token by token in float64."""

import time

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archfront.builders.mixers.recurrence import chunked, step

NAMES = ("q", "k", "v", "decay", "beta", "state")


def inputs(
    tokens: int, *, delta: bool, key_heads: int = 2, value_heads: int = 4
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    found = {
        "q": normal(2, tokens, key_heads, 8),
        "k": F.normalize(normal(2, tokens, key_heads, 8), dim=-1),
        "v": normal(2, tokens, value_heads, 6),
        "decay": F.logsigmoid(normal(2, tokens, value_heads)),
        "beta": normal(2, tokens, value_heads).sigmoid(),
        "state": normal(2, value_heads, 8, 6),
    }
    return found if delta else {name: x for name, x in found.items() if name != "beta"}


def in_order(found: dict[str, Tensor]) -> list[Tensor | None]:
    return [found.get(name) for name in NAMES]


def token_by_token(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    q, k = (x.repeat_interleave(v.shape[2] // q.shape[2], 2) for x in (q, k))
    reads = []
    for t in range(q.shape[1]):
        state = state * decay[:, t].exp()[..., None, None]
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], value)
        reads.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(reads, 1), state


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("delta", [False, True])
class TestChunked:
    @pytest.mark.parametrize("tokens", [1, 63, 64, 130])
    def test_outputs_and_gradients_equal_the_recurrence(self, delta: bool, tokens: int) -> None:
        exact = {name: x.requires_grad_() for name, x in inputs(tokens, delta=delta).items()}
        single = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
        results, gradients = [], []
        for run, leaves in ((chunked, single), (token_by_token, exact)):
            o, state = run(*in_order(leaves))
            results.append((o, state))
            loss = (o * torch.cos(torch.arange(o.numel())).view_as(o)).sum() + state.square().sum()
            gradients.append(torch.autograd.grad(loss, list(leaves.values())))
        for found, expected in zip(*results, strict=True):
            assert relative_error(found, expected) < 2e-6
        for name, found, expected in zip(exact, *gradients, strict=True):
            assert relative_error(found, expected) < 5e-6, name

    @pytest.mark.parametrize("chunk", [1, 7, 32, 200])
    def test_the_chunk_size_does_not_matter(self, delta: bool, chunk: int) -> None:
        x = in_order(inputs(100, delta=delta))
        torch.testing.assert_close(chunked(*x, chunk=chunk), chunked(*x))

    def test_steps_equal_the_recurrence(self, delta: bool) -> None:
        x = inputs(20, delta=delta)
        expected, last = token_by_token(*in_order(x))
        reads, state = [], x["state"]
        for t in range(20):
            token = {name: x[name][:, t : t + 1] for name in x if name != "state"}
            o, state = step(*in_order(token | {"state": state}))
            reads.append(o)
        torch.testing.assert_close(torch.cat(reads, 1), expected)
        torch.testing.assert_close(state, last)

    def test_extreme_gates_cost_no_precision(self, delta: bool) -> None:
        x = inputs(130, delta=delta)
        x["decay"][:, ::3] = 0
        x["decay"][:, 1::3] = -1e4
        x["decay"][:, 50] = -torch.inf
        expected, _ = token_by_token(*in_order(x))
        single = {name: value.float().requires_grad_() for name, value in x.items()}
        o, _ = chunked(*in_order(single))
        o.sum().backward()
        assert relative_error(o, expected) < 1e-4
        assert all(leaf.grad.isfinite().all() for leaf in single.values())

    def test_chunks_train_three_times_as_fast_as_tokens(self, delta: bool) -> None:
        shape = inputs(512, delta=delta)
        leaves = {name: x.float().requires_grad_() for name, x in shape.items()}
        seconds = {}
        for run in (token_by_token, chunked):
            run(*in_order(leaves))[0].sum().backward()
            start = time.process_time()
            run(*in_order(leaves))[0].sum().backward()
            seconds[run] = time.process_time() - start
        assert seconds[token_by_token] > 3 * seconds[chunked]
