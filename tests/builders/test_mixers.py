"""One contract for every mixer: what it sees, and that decoding gives what reading gives."""

import dataclasses
from typing import Any

import pytest
import torch

from archfront.builders.body import Body
from archfront.builders.mixers.attention import attend
from archfront.builders.mixers.cache import PAGE, TokenCache
from archfront.builders.model import build
from archfront.search_space.accounting import cache_bytes_at
from archfront.search_space.architecture import Architecture

D_MODEL = 32
TOKENS = 150  # more than two blocks of a window, two chunks of a recurrence; divisible by neither

ATTN = {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 8}
MLA = {
    "kind": "mla",
    "heads": 3,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
MAMBA2 = {"kind": "mamba2", "heads": 4, "head_dim": 8, "d_state": 16}
GDN = {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 8, "v_head_dim": 6}

GROWING = {
    "mha": ("*", ATTN | {"kv_heads": 4}),
    "gqa": ("*", ATTN),
    "mqa": ("*", ATTN | {"kv_heads": 1}),
    "nope": ("*", ATTN | {"rope": None}),
    "partial rope": ("*", ATTN | {"rope": {"theta": 500.0, "partial": 0.5}}),
    "qk norm": ("*", ATTN | {"qk_norm": "head"}),
    "sinks": ("*", ATTN | {"sinks": True}),
    "window of one": ("W", ATTN | {"window": 1}),
    "window": ("W", ATTN | {"window": 5}),
    "wide window": ("W", ATTN | {"window": 70}),
    "window over the text": ("W", ATTN | {"window": 1000}),
    "window with sinks": ("W", ATTN | {"window": 5, "sinks": True}),
    "wide window with sinks": ("W", ATTN | {"window": 70, "sinks": True}),
    "mla": ("L", MLA),
    "mla with query latent": ("L", MLA | {"q_lora_rank": 10}),
    "mla with wide values": ("L", MLA | {"v_head_dim": 20}),
}
CONSTANT = {
    "mamba2": ("M", MAMBA2),
    "mamba2 with groups": ("M", MAMBA2 | {"groups": 2, "conv": 2}),
    "gdn": ("G", GDN),
    "gdn with a key head a value head": ("G", GDN | {"k_heads": 4}),
}
CASES = {name: (*case, ()) for name, case in (GROWING | CONSTANT).items()} | {
    f"{name}, fp8 cache": (*case, ("kv_cache",)) for name, case in GROWING.items()
}


def architecture(name: str) -> Architecture:
    symbol, block, fp8 = CASES[name]
    return Architecture.model_validate(
        {
            "d_model": D_MODEL,
            "vocab_size": 16,
            "pattern": symbol,
            "blocks": {symbol: block},
            "precision": {"fp8": fp8},
        }
    )


def mixer(name: str, dtype: torch.dtype = torch.float64) -> Body:
    """Weights large enough that gates open, attention is uneven and no gain is one."""
    body = build(architecture(name), dtype=dtype).blocks[0].body
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return body


def text(tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, tokens, D_MODEL, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
class TestEveryMixer:
    def test_a_later_token_does_not_change_earlier_outputs(self, name: str) -> None:
        body, x = mixer(name), text()
        before = body(x)
        x[:, 101] += 1
        after = body(x)
        torch.testing.assert_close(after[:, :101], before[:, :101])
        assert (after[:, 101] - before[:, 101]).abs().max() > 1e-3

    @pytest.mark.parametrize("read", [1, 71])
    @torch.no_grad()
    def test_prefill_and_steps_give_what_forward_gives(self, name: str, read: int) -> None:
        body, x = mixer(name), text()
        y, cache = body.prefill(x[:, :read])
        steps = [body.step(x[:, t : t + 1], cache) for t in range(read, TOKENS)]
        torch.testing.assert_close(torch.cat([y, *steps], 1), body(x))

    def test_sequences_of_a_batch_do_not_meet(self, name: str) -> None:
        body, x = mixer(name), text()
        torch.testing.assert_close(body(x)[1:], body(x[1:]))

    def test_large_inputs_give_finite_outputs_and_gradients(self, name: str) -> None:
        body, x = mixer(name, torch.float32), 100 * text(dtype=torch.float32)
        y = body(x.requires_grad_())
        y.sum().backward()
        gradients = [x.grad, *(parameter.grad for parameter in body.parameters())]
        assert y.isfinite().all()
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)

    def test_the_cache_holds_the_bytes_that_are_counted(self, name: str) -> None:
        body, x = mixer(name, torch.bfloat16), text(dtype=torch.bfloat16)
        _, cache = body.prefill(x)
        held = sum(tensor.nbytes for tensor in tensors(cache))
        assert held == 2 * cache_bytes_at(architecture(name), TOKENS)


def tensors(cache: Any) -> list[torch.Tensor]:
    if isinstance(cache, torch.Tensor):
        return [cache]
    if isinstance(cache, TokenCache):
        return cache.buffers
    fields = dataclasses.fields(cache)
    return [tensor for field in fields for tensor in tensors(getattr(cache, field.name))]


class TestAttend:
    @pytest.mark.parametrize("window", [None, 1, 9, 64, 100, 500])
    @pytest.mark.parametrize("with_sinks", [False, True])
    def test_outputs_and_gradients_equal_an_explicit_softmax(
        self, window: int | None, with_sinks: bool
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {"q": (2, 6, 141, 8), "k": (2, 3, 141, 8), "v": (2, 3, 141, 8), "sinks": (6,)}
        leaves = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for name, shape in shapes.items()
            if name != "sinks" or with_sinks
        }
        outputs, gradients = [], []
        for function in (attend, explicit):
            q, k, v, sinks = (leaves.get(name) for name in shapes)
            o = function(q, k, v, window=window, sinks=sinks)
            weight = torch.randn(o.shape, generator=generator.manual_seed(1), dtype=o.dtype)
            outputs.append(o)
            gradients.append(torch.autograd.grad((o * weight).sum(), list(leaves.values())))
        torch.testing.assert_close(outputs[0], outputs[1])
        for name, found, expected in zip(leaves, *gradients, strict=True):
            torch.testing.assert_close(found, expected, msg=name)


def explicit(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    B, H, T, K = q.shape
    k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    age = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (age < 0) | (age >= (window or T))
    logits = (q @ k.mT * K**-0.5).masked_fill(hidden, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks[:, None, None].expand(B, H, T, 1)], -1)
    return logits.softmax(-1)[..., :T] @ v


class TestTokenCache:
    def test_it_grows_over_pages(self) -> None:
        x = torch.randn(1, 2 * PAGE + 10, 2, 4)
        cache = TokenCache(x[:, :3], window=None, fp8=False)
        for t in range(3, x.shape[1]):
            cache.append(x[:, t : t + 1])
        torch.testing.assert_close(cache.read(), x)

    def test_a_window_keeps_its_last_tokens_and_no_more(self) -> None:
        x = torch.arange(20.0).reshape(1, 20, 1, 1)
        cache = TokenCache(x[:, :3], window=5, fp8=False)
        for t in range(3, 20):
            cache.append(x[:, t : t + 1])
        assert sorted(cache.read().flatten().tolist()) == [15, 16, 17, 18, 19]
        assert cache.buffers[0].shape[1] == 5

    def test_fp8_keeps_a_scale_a_token_and_head(self) -> None:
        cache = TokenCache(torch.randn(2, 7, 3, 16), window=None, fp8=True)
        values, scales = cache.buffers
        assert values.dtype == torch.float8_e4m3fn
        assert scales.shape == (2, 7, 3, 1)
