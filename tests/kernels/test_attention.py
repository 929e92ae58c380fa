"""Attention through its public API: torch implementation, cache, input checks."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.attention import cache, op, reference
from archfront.kernels.attention.configs import HALF, TABLE, config_for
from archfront.kernels.requirements import Unsupported

# 300 tokens are three blocks of the torch implementation, the last one partial
B, T, H, G = 2, 300, 4, 2
SEGMENT_IDS = torch.tensor([[0] * 10 + [3] * 200 + [4] * 90, [1] * 299 + [2]], dtype=torch.int32)
RULES = {
    "causal": {},
    "all": {"causal": False},
    "narrow window": {"window": 20},
    "window": {"window": 100},
    "wide window": {"window": 1000},
    "segment_ids": {"segment_ids": SEGMENT_IDS},
    "segments in a window": {"segment_ids": SEGMENT_IDS, "window": 20},
    "whole segments": {"segment_ids": SEGMENT_IDS, "causal": False},
    "soft cap": {"softcap": 2.0, "scale": 0.5},
}


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def heads(tokens=T, K=24, V=16, dtype=torch.float32):
    shapes = (B, tokens, H, K), (B, tokens, G, K), (B, tokens, G, V)
    return tuple(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)


def lists(tokens=T, block=16, n=3):
    blocks = torch.rand(B, G, tokens, -(-tokens // block)).topk(n).indices.int()
    return blocks.masked_fill(torch.rand(blocks.shape) < 0.2, -1)


def with_gradients(function, inputs):
    """All outputs, and gradients for fixed cotangents."""
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.cos(torch.arange(y.numel()).view(y.shape) / 7).to(y) for y in outputs]
    return *outputs, *torch.autograd.grad(outputs, inputs, cotangents)


@pytest.mark.parametrize("rule", RULES)
def test_the_torch_implementation_matches_the_reference(rule):
    inputs = heads(dtype=torch.float64)
    ours = with_gradients(partial(op.attend, **RULES[rule]), inputs)
    torch.testing.assert_close(
        ours, with_gradients(partial(reference.attend, **RULES[rule]), inputs)
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("widths", [(24, 16), (16, 24)])
def test_the_output_alone_matches_the_reference(rule, widths):
    inputs = heads(K=widths[0], V=widths[1], dtype=torch.float64)
    ours = with_gradients(partial(op.attend_without_lse, **RULES[rule]), inputs)
    truth = with_gradients(lambda *x: reference.attend(*x, **RULES[rule])[0], inputs)
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("segment_ids", [None, SEGMENT_IDS])
@pytest.mark.parametrize("block", [16, 128])
def test_the_torch_implementation_of_blocks_matches_the_reference(block, segment_ids):
    inputs = heads(dtype=torch.float64)
    blocks = lists(block=block)
    blocks[..., 0] = torch.arange(T) // block  # so that all have an lse
    rule = {"blocks_BGTN": blocks, "block": block, "segment_ids": segment_ids}
    ours = with_gradients(partial(op.attend_blocks, **rule), inputs)
    torch.testing.assert_close(
        ours, with_gradients(partial(reference.attend_blocks, **rule), inputs)
    )


def test_bfloat16_keeps_its_dtype_and_a_wide_lse():
    inputs = heads(dtype=torch.bfloat16)
    truth = reference.attend(*(x.double() for x in inputs))
    for o, lse in (op.attend(*inputs), reference.attend(*inputs)):
        assert (o.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(o.double(), truth[0], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(lse.double(), truth[1], rtol=1e-6, atol=1e-6)


def test_the_reference_agrees_with_torchs_own_operator():
    q, k, v = (x.detach() for x in heads(V=24, dtype=torch.float64))
    o = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(reference.attend(q, k, v)[0], o.transpose(1, 2))


@pytest.mark.parametrize("implementation", [op, reference])
def test_a_query_that_sees_no_key_is_zero_with_gradients(implementation):
    inputs = heads(tokens=20)
    none = torch.full((B, G, 20, 2), -1, dtype=torch.int32)
    o, lse = implementation.attend_blocks(*inputs, none, block=16)
    o.sum().backward()
    assert torch.equal(o, torch.zeros_like(o))
    assert (lse == -torch.inf).all()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in inputs)


def test_a_sink_is_one_more_key_without_a_value():
    q, k, v = heads(dtype=torch.float64)
    sinks = torch.randn(H, dtype=torch.float64, requires_grad=True)

    def with_a_key(q, k, v, sinks):
        s = torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(H // G, 2)) * 24**-0.5
        s = s.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        s = torch.cat([s, sinks[:, None, None].expand(B, H, T, 1)], -1)
        p = s.softmax(-1)[..., :-1]
        return torch.einsum("bhts,bshv->bthv", p, v.repeat_interleave(H // G, 2))

    ours = with_gradients(
        lambda q, k, v, s: op.with_sinks(*op.attend(q, k, v), s), (q, k, v, sinks)
    )
    torch.testing.assert_close(ours, with_gradients(with_a_key, (q, k, v, sinks)))


def cached(dtype=torch.float32, pages=torch.float32, shared=False, **sizes):
    """Rows of 7 and 33 tokens in pages of 16 in random order; and the tokens themselves."""
    sizes = {"kv_heads": G, "k_dim": 24, "v_dim": 16} | sizes
    held = cache.allocate(batch=B, tokens=40, page=16, dtype=pages, value_in_key=shared, **sizes)
    held.page_table.copy_(torch.randperm(held.page_table.numel()).view_as(held.page_table))
    k = torch.randn(B, 33, sizes["kv_heads"], sizes["k_dim"]).to(dtype)
    v = k[..., : sizes["v_dim"]] if shared else torch.randn(B, 33, G, sizes["v_dim"]).to(dtype)
    for part in (slice(0, 7), slice(7, 33)):
        cache.append(held, k[:, part], None if shared else v[:, part])
    held.lengths_B.copy_(torch.tensor([7, 33]))
    return held, k, v


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pages", [torch.float32, torch.int8, torch.float8_e4m3fn])
def test_what_was_appended_is_read_back(pages, shared):
    held, k, v = cached(pages=pages, shared=shared)
    rounding = {torch.float32: 0, torch.int8: 0.5 / 127, torch.float8_e4m3fn: 2**-4}[pages]
    for ours, x in zip(cache.read(held), (k, v), strict=True):
        largest = (k if shared else x)[1].abs().amax(-1, keepdim=True)
        assert ((ours[1, :33] - x[1]).abs() <= rounding * largest + 1e-6).all()
        assert ours[0, 7:].count_nonzero() == 0


def test_the_largest_of_a_quantized_row_is_the_largest_number():
    x = torch.tensor([[1.0, -3.0, 0.5], [0.0, 0.0, 0.0]])
    for dtype, edge in cache.LARGEST.items():
        values, scale = cache.quantize_rows(x, dtype)
        assert values[0, 1].float() == -edge
        torch.testing.assert_close(scale[0] * edge, torch.tensor(3.0))
        assert values[1].float().count_nonzero() == 0


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pages", [torch.float64, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("rule", [{}, {"window": 9}, {"softcap": 2.0, "scale": 0.5}])
def test_the_torch_implementation_of_decoding_matches_the_reference(pages, shared, rule):
    held, _, _ = cached(pages=pages, shared=shared, dtype=torch.float64)
    for tokens in (1, 9):  # more than one row holds: some queries see no key
        q = torch.randn(B, tokens, H, 24, dtype=torch.float64)
        ours, truth = (
            implementation.attend_cached(q, held, **rule) for implementation in (op, reference)
        )
        torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window", [None, 9])
def test_decoding_gives_the_last_rows_of_the_sequence(window):
    held, k, v = cached()
    q = torch.randn(B, 33, H, 24)
    o, lse = op.attend(q[1:], k[1:], v[1:], window=window)
    ours = op.attend_cached(q[:, -3:], held, window=window)
    torch.testing.assert_close((ours[0][1:], ours[1][1:]), (o[:, -3:], lse[..., -3:]))


@pytest.mark.parametrize("backend", ["torch", "triton", None])
def test_a_meta_tensor_gives_shapes(backend):
    q = meta(2, 9, 4, 32, dtype=torch.bfloat16).requires_grad_()
    k, v = (meta(2, 9, 2, width, dtype=torch.bfloat16).requires_grad_() for width in (32, 16))
    segment_ids, blocks = meta(2, 9, dtype=torch.int32), meta(2, 2, 9, 3, dtype=torch.int32)
    held = cache.allocate(
        batch=2, tokens=9, kv_heads=2, k_dim=32, v_dim=16, dtype=torch.int8, device="meta"
    )
    with torch.no_grad():
        decoded = op.attend_cached(q, held, backend=backend)
    for o, lse in (
        op.attend(q, k, v, window=3, segment_ids=segment_ids, backend=backend),
        op.attend_blocks(q, k, v, blocks, block=16, backend=backend),
        decoded,
    ):
        assert (o.shape, o.dtype, o.device.type) == ((2, 9, 4, 16), torch.bfloat16, "meta")
        assert (lse.shape, lse.dtype) == ((2, 4, 9), torch.float32)
        if o.requires_grad:
            (o.sum() + lse.sum()).backward()
            assert v.grad.shape == v.shape


def sequence(q=(2, 9, 4, 32), k=(2, 9, 2, 32), v=(2, 9, 2, 16), dtype=torch.float32):
    return meta(*q, dtype=dtype), meta(*k, dtype=dtype), meta(*v, dtype=dtype)


UNSUPPORTED = {
    "needs a CUDA tensor.*device=cpu": lambda: (heads(), {}),
    "q must be float32, bfloat16 or float16.*float64": lambda: (sequence(dtype=torch.float64), {}),
    "heads must divide the query heads, got heads=3, kv_heads=2": lambda: (
        sequence(q=(2, 9, 3, 32)),
        {},
    ),
    r"\[B, T, G, V\], no size 0, got .*v=\(2, 8, 2, 16\)": lambda: (
        sequence(v=(2, 8, 2, 16)),
        {},
    ),
    r"no size 0, got q=\(2, 0, 4, 32\)": lambda: (
        sequence(q=(2, 0, 4, 32), k=(2, 0, 2, 32), v=(2, 0, 2, 16)),
        {},
    ),
    "k must have q's dtype": lambda: ((sequence()[0], *sequence(dtype=torch.float16)[1:]), {}),
    "last dimension of v must be contiguous": lambda: (
        (*sequence()[:2], meta(2, 9, 16, 2).transpose(2, 3)),
        {},
    ),
    r"segment_ids must be \(2, 9\) torch.int32": lambda: (sequence(), {"segment_ids": meta(2, 9)}),
    "scale must be > 0": lambda: (sequence(), {"scale": -1.0}),
    "softcap must be > 0": lambda: (sequence(), {"softcap": 0.0}),
}


@pytest.mark.parametrize("constraint", UNSUPPORTED)
def test_attention_rejects_unsupported_inputs(constraint):
    inputs, rule = UNSUPPORTED[constraint]()
    with pytest.raises(Unsupported, match=constraint):
        op.attend(*inputs, **rule, backend="triton")


def test_blocks_reject_unsupported_inputs():
    blocks = meta(2, 2, 9, 3, dtype=torch.int32)
    for constraint, inputs, listed, block in (
        ("power of two >= 16, got block=48", sequence(), blocks, 48),
        (r"blocks must be \[2, 2, 9, N\] torch.int32", sequence(), blocks.long(), 16),
        ("at most 32 query heads", sequence(q=(2, 9, 66, 32)), blocks, 16),
    ):
        with pytest.raises(Unsupported, match=constraint):
            op.attend_blocks(*inputs, listed, block=block, backend="triton")


def test_a_cache_rejects_unsupported_inputs():
    held = cache.allocate(
        batch=2, tokens=9, kv_heads=2, k_dim=32, v_dim=16, dtype=torch.float32, device="meta"
    )
    for constraint, q in (
        ("read without gradients", meta(2, 1, 4, 32).requires_grad_()),
        ("pages must be of q's dtype", meta(2, 1, 4, 32, dtype=torch.bfloat16)),
        (r"k_pages must be contiguous, \(2, 64, 2, 24\)", meta(2, 1, 4, 24)),
        (r"page_table must be contiguous, \(3, 1\)", meta(3, 1, 4, 32)),
    ):
        with pytest.raises(Unsupported, match=constraint):
            op.attend_cached(q, held, backend="triton")


def test_a_window_is_causal_and_holds_the_token_itself():
    for rule in ({"window": 0}, {"window": 3, "causal": False}):
        with pytest.raises(ValueError, match="a window must be causal and >= 1"):
            op.attend(*heads(), **rule)


@pytest.mark.parametrize("arch", TABLE)
def test_every_width_with_a_forward_has_a_backward(arch):
    for (kernel, kind), classes in TABLE[arch].items():
        assert list(classes) == sorted(classes)
        backwards = {
            "forward": ("backward_delta", "backward_keys", "backward_queries"),
            "blocks_forward": ("backward_delta", "blocks_backward_keys", "blocks_backward_queries"),
        }.get(kernel, ())
        assert all(max(TABLE[arch][name, kind]) >= max(classes) for name in backwards)


def test_a_head_wider_than_the_table_is_unsupported():
    assert (
        config_for("sm_80", "forward", torch.float16, 512, 512)
        == TABLE["sm_80"]["forward", HALF][512]
    )
    with pytest.raises(Unsupported, match="heads of at most 256 on sm_89, got K=257, V=64"):
        config_for("sm_89", "forward", torch.bfloat16, 257, 64)
    with pytest.raises(Unsupported, match="in float8_e4m3fn does not run on sm_80"):
        config_for("sm_80", "decode_split", torch.float8_e4m3fn, 64, 64)


def test_the_public_api_does_not_import_triton():
    code = (
        "import sys; from archfront.kernels.attention import op; sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listed_keys_in_torch_equal_the_reference():
    shapes = (2, 7, 3, 20), (2, 30, 20)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    index = torch.rand(2, 7, 30).topk(11).indices.int()
    index = index.masked_fill(torch.rand(index.shape) < 0.3, -1)
    rule = {"index_BTN": index, "v_dim": 12, "scale": 0.3}
    ours = with_gradients(partial(op.attend_selected, backend="torch", **rule), inputs)
    theirs = with_gradients(partial(reference.attend_selected, **rule), inputs)
    torch.testing.assert_close(ours, theirs)
