"""Attention against its reference on a GPU: run as `pytest -m gpu tests/kernels/gpu`."""

import pytest
import torch

from archfront.kernels.attention import cache, op, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]
BF16 = torch.bfloat16
# batch, tokens, query heads, key/value heads, key width, value width
SEQUENCES = [
    (1, 1, 2, 1, 16, 16),
    (2, 17, 4, 4, 40, 24),
    (2, 1000, 8, 2, 64, 64),
    (1, 1000, 4, 4, 96, 80),
    (1, 2048, 8, 2, 128, 128),
]
WIDE_TEXTS = [
    (1, 1000, 4, 4, 192, 128),
    (1, 1000, 4, 1, 256, 256),
    (1, 300, 4, 1, 512, 512),
]
RULES = {
    "causal": {},
    "all": {"causal": False},
    "window": {"window": 300},
    "narrow window": {"window": 5},
    "soft cap": {"softcap": 5.0, "scale": 0.5},
    "soft cap in a window": {"softcap": 5.0, "window": 300},
}


@pytest.fixture(autouse=True)
def on_the_gpu():
    """NaN-filled as in conftest.py, but cuBLAS may run the reference without its variable."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with torch.device("cuda"):
        yield
    torch.use_deterministic_algorithms(False)


def heads(B, T, H, G, K, V, dtype=BF16):
    shapes = {"q": (B, T, H, K), "k": (B, T, G, K), "v": (B, T, G, V)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def segment_ids_of(batch, tokens, length=237):
    segment = torch.arange(tokens, dtype=torch.int32) // length
    return segment.expand(batch, tokens).contiguous()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SEQUENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_attention_matches_its_reference(assert_matches_reference, shape, dtype, rule):
    assert_matches_reference("attention", "attend", heads(*shape, dtype), **RULES[rule])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", WIDE_TEXTS)
def test_wide_heads_match_their_reference(assert_matches_reference, shape, rule):
    assert_matches_reference("attention", "attend", heads(*shape), **RULES[rule])


@pytest.mark.parametrize("rule", [{}, {"window": 100}, {"causal": False}])
@pytest.mark.parametrize("shape", [*SEQUENCES[2:], *WIDE_TEXTS])
def test_segments_do_not_see_each_other(assert_matches_reference, shape, rule):
    segment_ids = segment_ids_of(*shape[:2])
    assert_matches_reference("attention", "attend", heads(*shape), segment_ids=segment_ids, **rule)


def test_slices_of_a_projection_are_read_in_place(assert_matches_reference):
    q, k, v = torch.randn(2, 1000, 12, 128, dtype=BF16).split([8, 2, 2], dim=2)
    assert_matches_reference("attention", "attend", {"q": q, "k": k, "v": v})


@pytest.mark.parametrize("width", [64, 128, 256])
def test_integers_come_out_exact(width):
    """Weights of 1/1024 and sums of integers: no product has to round."""
    q = torch.zeros(1, 1024, 4, width, dtype=BF16)
    k, v, do = torch.randint(-8, 9, (3, 1, 1024, 4, width)).to(BF16)
    v.requires_grad_()
    o, _ = op.attend(q, k, v, causal=False)
    o.backward(do)
    mean = v.detach().double().mean(1, keepdim=True)
    assert torch.equal(o, mean.to(BF16).expand_as(o))
    dv = do.double().sum(1, keepdim=True) / 1024
    assert torch.equal(v.grad, dv.to(BF16).expand_as(v))


@pytest.mark.parametrize("width", [64, 128, 192, 256])
def test_three_runs_give_the_same_bits(width):
    leaves = [x.requires_grad_() for x in heads(2, 2000, 16, 2, width, width).values()]
    blocks = torch.rand(2, 2, 2000, 32).topk(8).indices.int()
    blocks[..., 0] = torch.arange(2000) // 64

    def run():
        o, lse = op.attend(*leaves, window=700)
        chosen, _ = op.attend_blocks(*leaves, blocks, block=64)
        total = o.float().sum() + lse.sum() + chosen.float().sum()
        return o, lse, chosen, *torch.autograd.grad(total, leaves)

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_elements_past_two_to_the_31_are_reached():
    tokens, seen = 140_000, 500
    inputs = heads(1, tokens, 128, 1, 128, 128)
    o, lse = op.attend(*inputs.values(), window=200)
    tail = [x[:, -seen:] for x in inputs.values()]
    truth, lse_truth = reference.attend(*tail, window=200)
    torch.testing.assert_close(o[:, -100:], truth[:, -100:], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse[..., -100:], lse_truth[..., -100:], rtol=1e-4, atol=1e-4)


def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch):
    monkeypatch.setattr(op, "attend", torch.compile(op.attend, fullgraph=True))
    inputs = heads(2, 1000, 8, 2, 64, 64)
    assert_matches_reference("attention", "attend", inputs, segment_ids=segment_ids_of(2, 1000))


# new tokens, query heads, key/value heads, key width, value width, value in the key
CACHES = [
    (1, 8, 2, 64, 64, False),
    (1, 32, 8, 128, 128, False),
    (4, 32, 4, 128, 128, False),
    (1, 16, 2, 256, 256, False),
    (1, 128, 1, 576, 512, True),
]
LENGTHS = (4, 63, 1000, 5000)


@pytest.mark.parametrize("rule", [{}, {"window": 300}])
@pytest.mark.parametrize("sizes", CACHES)
@pytest.mark.parametrize("pages", [BF16, torch.int8, torch.float8_e4m3fn])
def test_a_cache_matches_its_reference(sizes, pages, rule):
    Q, H, G, K, V, shared = sizes
    if pages == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 on this device")
    B = len(LENGTHS)
    held = cache.allocate(
        batch=B,
        tokens=max(LENGTHS),
        kv_heads=G,
        k_dim=K,
        v_dim=V,
        value_in_key=shared,
        dtype=pages,
        device="cuda",
    )
    held.page_table.copy_(torch.randperm(held.page_table.numel()).view_as(held.page_table))
    k, v = (torch.randn(B, max(LENGTHS), G, width, dtype=BF16) for width in (K, V))
    cache.append(held, k, None if shared else v)
    held.lengths_B.copy_(torch.tensor(LENGTHS))
    q = torch.randn(B, Q, H, K, dtype=BF16)

    o, lse = op.attend_cached(q, held, **rule)
    truth, lse_truth = reference.attend_cached(q.double(), held, **rule)
    plain, _ = reference.attend_cached(q, held, **rule)
    assert (o - truth).norm() <= 2 * (plain - truth).norm()
    torch.testing.assert_close(lse.double(), lse_truth, rtol=1e-5, atol=1e-5)


# query heads, key/value heads, key width, value width, block, blocks listed beside the own one
SELECTIONS = [
    (4, 4, 64, 64, 64, 3),
    (32, 2, 128, 128, 64, 7),
    (32, 2, 192, 128, 64, 7),
    (8, 1, 128, 128, 128, 3),
    (8, 1, 256, 256, 64, 3),
]


@pytest.mark.parametrize("segment_ids", [None, segment_ids_of])
@pytest.mark.parametrize("sizes", SELECTIONS)
def test_listed_blocks_match_the_reference(assert_matches_reference, sizes, segment_ids):
    H, G, K, V, block, n = sizes
    B, T = 2, 1000
    own = (torch.arange(T) // block).int()
    others = torch.rand(B, G, T, -(-T // block)).topk(n).indices.int()
    others[others == own[:, None]] = -1
    rule = {
        "blocks_BGTN": torch.cat([own[:, None].expand(B, G, T, 1), others], -1),
        "block": block,
        "segment_ids": segment_ids and segment_ids(B, T),
    }
    assert_matches_reference("attention", "attend_blocks", heads(B, T, H, G, K, V), **rule)
