import pytest
import torch

from archfront.kernels.attention import dense, op, reference

SEGMENT_IDS = torch.tensor([[0] * 3 + [2] * 40 + [5] * 21, [1] * 63 + [2]], dtype=torch.int32)


def heads(B, T, H, G, K, V, dtype=torch.float32):
    shapes = {"q": (B, T, H, K), "k": (B, T, G, K), "v": (B, T, G, V)}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("tokens", [1, 17, 64, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_matches_its_reference(assert_matches_reference, tokens, causal):
    assert_matches_reference("attention", "attend", heads(1, tokens, 2, 1, 20, 12), causal=causal)


@pytest.mark.parametrize(("H", "G", "K", "V"), [(2, 2, 16, 64), (6, 2, 64, 16), (3, 1, 100, 80)])
def test_heads_of_any_group_and_width(assert_matches_reference, H, G, K, V):
    assert_matches_reference("attention", "attend", heads(1, 33, H, G, K, V))


@pytest.mark.parametrize("window", [1, 20, 70, 1000])
def test_a_window_holds_the_last_tokens(assert_matches_reference, window):
    assert_matches_reference("attention", "attend", heads(1, 100, 2, 1, 16, 16), window=window)


@pytest.mark.parametrize("rule", [{}, {"window": 9}, {"causal": False}])
def test_segments_do_not_see_each_other(assert_matches_reference, rule):
    assert_matches_reference(
        "attention", "attend", heads(2, 64, 1, 1, 16, 16), segment_ids=SEGMENT_IDS, **rule
    )


@pytest.mark.parametrize("softcap", [1.0, 30.0])
def test_a_soft_cap_bounds_the_scores(assert_matches_reference, softcap):
    inputs = heads(1, 40, 2, 1, 16, 16)
    assert_matches_reference("attention", "attend", inputs, softcap=softcap, scale=0.7, window=30)


# a whole tile and its parts: 128 queries or keys of it
@pytest.mark.parametrize("tokens", [100, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_dtype_errs_no_more_than_its_rounding(assert_matches_reference, tokens, dtype):
    assert_matches_reference("attention", "attend", heads(1, tokens, 2, 1, 64, 48, dtype))


@pytest.mark.parametrize("rule", [{"window": 260}, {"causal": False}])
def test_full_tiles_lie_between_masked_ones(assert_matches_reference, rule):
    segment_ids = torch.tensor([[0] * 20 + [1] * 380], dtype=torch.int32)
    inputs = heads(1, 400, 1, 1, 32, 32, torch.bfloat16)
    assert_matches_reference("attention", "attend", inputs, segment_ids=segment_ids, **rule)


# a key in two parts; a value so wide that dk and dv take two launches; both at once
@pytest.mark.parametrize(("K", "V"), [(150, 40), (128, 130), (260, 260)])
def test_a_wide_head_is_split(assert_matches_reference, K, V):
    assert_matches_reference("attention", "attend", heads(1, 140, 2, 1, K, V, torch.bfloat16))


def test_slices_of_a_projection_are_read_in_place(assert_matches_reference):
    q, k, v = torch.randn(2, 17, 8, 20).split([4, 2, 2], dim=2)
    assert_matches_reference("attention", "attend", {"q": q, "k": k, "v": v[..., :12]})


def test_one_output_may_go_unused():
    inputs = heads(1, 17, 2, 1, 16, 16)
    for used in (0, 1):
        grads = []
        for attend in (reference.attend, lambda *x: op.attend(*x, backend="triton")):
            leaves = [x.clone().requires_grad_() for x in inputs.values()]
            attend(*leaves)[used].sum().backward()  # an expanded gradient
            grads.append([torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_the_output_alone_is_the_same_output():
    inputs = heads(1, 17, 2, 1, 16, 16).values()
    o, _ = op.attend(*inputs, window=5, backend="triton")
    assert torch.equal(o, op.attend_without_lse(*inputs, window=5, backend="triton"))


def test_integers_come_out_exact():
    """Equal scores and small integer values: sums and means are exact in float32."""
    q = torch.zeros(1, 128, 1, 16)
    v = torch.randint(-8, 8, (1, 128, 1, 16)).float()
    o, lse = op.attend(q, q, v, backend="triton")
    count = torch.arange(1, 129.0)
    assert torch.equal((o[0, :, 0] * count[:, None]).round(), v[0, :, 0].cumsum(0))
    torch.testing.assert_close(lse[0, 0], count.log())


def test_the_operators_pass_torchs_opcheck():
    q, k, v = heads(1, 7, 2, 1, 16, 16).values()
    bounds = dense.segment_bounds(SEGMENT_IDS[:1, :7])
    rule = True, 5, 0.3, None
    o, lse = dense.attend_op(q, k, v, *bounds, *rule)
    gradients = torch.randn_like(o), torch.randn_like(lse)
    torch.library.opcheck(dense.attend_backward_op, (*gradients, o, lse, q, k, v, *bounds, *rule))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(dense.attend_op, (*leaves, *bounds, *rule))


def test_the_public_api_compiles_into_one_graph(assert_matches_reference, monkeypatch):
    compiled = torch.compile(op.attend, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, "attend", compiled)
    inputs = heads(2, 64, 2, 1, 16, 16)
    assert_matches_reference("attention", "attend", inputs, segment_ids=SEGMENT_IDS, window=20)
