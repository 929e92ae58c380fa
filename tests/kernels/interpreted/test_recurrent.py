"""The chunk kernels of `linear_recurrence` and `rwkv7_recurrence`."""

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.recurrent import chunks, configs, op, reference

BF16 = torch.bfloat16
# (decay: none, per head, per token and head, per channel too; delta rule)
VARIANTS = {
    "linear attention": (None, False),
    "deltanet": (None, True),
    "retention": ("head", False),
    "mamba-2": ("token", False),
    "gated deltanet": ("token", True),
    "gla": ("channel", False),
    "kda": ("channel", True),
}


def inputs(variant, B=1, T=70, G=2, H=2, K=20, V=12, dtype=torch.float32):
    decay, delta = VARIANTS[variant]
    decays = {
        "head": -torch.rand(H),
        "token": F.logsigmoid(torch.randn(B, T, H)),
        "channel": -5 * torch.rand(B, T, H, K),
    }
    given = {
        "q_BTGK": torch.randn(B, T, G, K).to(dtype),
        "k_BTGK": F.normalize(torch.randn(B, T, G, K), dim=-1).to(dtype),
        "v_BTHV": torch.randn(B, T, H, V).to(dtype),
        "decay": decays.get(decay),
        "beta": 2 * torch.rand(B, T, H) if delta else None,
        "state_BHKV": torch.randn(B, H, K, V),
    }
    return {name: x for name, x in given.items() if x is not None}


def inputs_rwkv7(B=1, T=70, H=2, K=20, V=12, dtype=torch.float32):
    r, k = torch.randn(2, B, T, H, K).to(dtype)
    removed = F.normalize(torch.randn(B, T, H, K), dim=-1)
    return {
        "r_BTHK": r,
        "w_BTHK": -0.6 * torch.rand(B, T, H, K),
        "k_BTHK": k,
        "v_BTHV": torch.randn(B, T, H, V).to(dtype),
        "a_BTHK": -removed.to(dtype),
        "b_BTHK": (removed * torch.rand(B, T, H, K)).to(dtype),
        "state_BHKV": torch.randn(B, H, K, V),
    }


def segment_ids_of(B, T):
    """Some end inside a chunk, some at its end, some have one token."""
    ends = torch.tensor([1, 16, 32, 33, 60])
    return torch.bucketize(torch.arange(T), ends, right=True).int().expand(B, T).contiguous()


@pytest.fixture(autouse=True)
def float32_takes_the_chunk_it_is_asked(monkeypatch):
    monkeypatch.setattr(configs, "LARGEST_FLOAT32_CHUNK", 64)


@pytest.fixture
def assert_matches_recurrence(assert_matches_reference, monkeypatch):
    """assert_matches_recurrence(inputs, **settings), where optional inputs may be left out."""

    def check(given, chunk=32, **settings):
        name = "rwkv7_recurrence" if "r_BTHK" in given else "linear_recurrence"

        def by_name(function, **more):
            return lambda *xs, **s: function(**dict(zip(given, xs, strict=True)), **s, **more)

        monkeypatch.setattr(reference, "given", by_name(getattr(reference, name)), raising=False)
        ours = by_name(getattr(op, name), chunk=chunk)
        monkeypatch.setattr(op, "given", ours, raising=False)
        assert_matches_reference("recurrent", "given", given, **settings)

    return check


def errors(given, **settings):
    """The relative error of every output and gradient against the reference in float64."""
    results = []
    for module, dtype in ((reference, torch.float64), (op, None)):
        leaves = {name: x.to(dtype or x.dtype).requires_grad_() for name, x in given.items()}
        function = getattr(module, "rwkv7_recurrence" if "r_BTHK" in given else "linear_recurrence")
        more = {} if module is reference else {"backend": "triton"}
        outputs = function(**leaves, **settings, **more)
        torch.manual_seed(1)
        cotangents = [torch.randn(y.shape).to(y.dtype) for y in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
        results.append([*outputs, *gradients])
    names = ["o", "state", *(f"d{name}" for name in given)]
    return {
        name: ((y.double() - truth).norm() / truth.norm()).item()
        for name, truth, y in zip(names, *results, strict=True)
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_matches_its_reference(assert_matches_recurrence, variant):
    assert_matches_recurrence(inputs(variant), scale=0.3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_segments_do_not_interact(assert_matches_recurrence, variant):
    assert_matches_recurrence(inputs(variant, G=1), segment_ids=segment_ids_of(1, 70))


@pytest.mark.parametrize("tokens", [1, 17, 64, 100])
@pytest.mark.parametrize("variant", ["gated deltanet", "kda"])
def test_any_number_of_tokens_matches_the_reference(assert_matches_recurrence, variant, tokens):
    assert_matches_recurrence(inputs(variant, T=tokens))


@pytest.mark.parametrize("chunk", configs.CHUNKS)
@pytest.mark.parametrize("variant", ["mamba-2", "kda"])
def test_the_chunk_size_does_not_change_the_result(assert_matches_recurrence, variant, chunk):
    assert_matches_recurrence(inputs(variant), chunk=chunk)


@pytest.mark.parametrize(("K", "V"), [(16, 64), (64, 16), (48, 40), (130, 16)])
@pytest.mark.parametrize("variant", ["gated deltanet", "kda"])
def test_keys_and_values_of_any_width(assert_matches_recurrence, variant, K, V, monkeypatch):
    monkeypatch.setattr(configs, "WIDEST_KEY_ANYWHERE", configs.WIDEST_KEY)
    assert_matches_recurrence(inputs(variant, T=33, H=1, G=1, K=K, V=V))


# heads_of(6) = 6 in one part, heads_of(12) = 6 in two
@pytest.mark.parametrize(("G", "H"), [(1, 6), (1, 12), (2, 4)])
@pytest.mark.parametrize("variant", ["retention", "gated deltanet", "gla"])
def test_value_heads_share_key_heads(assert_matches_recurrence, variant, G, H):
    assert_matches_recurrence(inputs(variant, T=10, G=G, H=H), chunk=16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_errs_by_a_few_roundings(variant):
    torch.manual_seed(0)
    found = errors(inputs(variant, T=100, K=32, V=32, dtype=BF16), scale=0.2)
    assert max(found.values()) < 1e-2, found


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_delta_rule_with_extreme_beta(assert_matches_recurrence, beta):
    given = inputs("deltanet")
    given["beta"] = torch.full_like(given["beta"], beta)
    given["beta"][:, ::3] = 0
    assert_matches_recurrence(given)


def test_similar_keys_cost_no_precision(assert_matches_recurrence):
    given = inputs("deltanet", T=64)
    k = given["k_BTGK"]
    given["k_BTGK"] = F.normalize(k[:, :1] + 0.1 * k, dim=-1)
    assert_matches_recurrence(given, chunk=64)


@pytest.mark.filterwarnings("ignore:.* encountered in")  # from numpy, the interpreter
@pytest.mark.parametrize("variant", ["mamba-2", "gated deltanet", "gla", "kda"])
def test_extreme_decays_cost_no_precision(variant):
    torch.manual_seed(0)
    given = inputs(variant)
    given["decay"][:, ::3] = 0
    given["decay"][:, 1::3] = -1e4
    given["decay"][:, 50] = -torch.inf
    found = errors(given)
    assert max(found.values()) < 1e-4, found


# at the bound itself, and below it, where the kernels raise a decay to the bound
@pytest.mark.filterwarnings("ignore:.* encountered in")  # from numpy, the interpreter
@pytest.mark.parametrize("decay", [1.0, 1.25, 5.0])
@pytest.mark.parametrize("variant", ["gla", "kda", "rwkv-7"])
def test_the_strongest_decay_of_a_channel_costs_no_precision(variant, decay):
    torch.manual_seed(0)
    rwkv7 = variant == "rwkv-7"
    given = inputs_rwkv7() if rwkv7 else inputs(variant)
    given["w_BTHK" if rwkv7 else "decay"][..., ::2] = decay * configs.MIN_LOG_DECAY_PER_CHANNEL
    found = errors(given)
    assert max(found.values()) < 1e-5, found


def test_inputs_are_read_in_place(assert_matches_recurrence):
    given = inputs("gated deltanet", B=2, K=16, V=16)
    qkv = torch.randn(2, 70, 6, 16)
    q, k, v = qkv.split(2, dim=2)
    assert_matches_recurrence(given | {"q_BTGK": q, "k_BTGK": k, "v_BTHV": v})


def test_a_token_of_each_row_is_read_in_place():
    given = inputs("gated deltanet", B=3, T=5)
    tokens = {name: x[:, 2:3] for name, x in given.items() if name != "state_BHKV"}
    o, _ = op.linear_recurrence(**tokens, backend="triton")
    expected, _ = reference.linear_recurrence(**tokens)
    torch.testing.assert_close(o, expected)


@pytest.mark.parametrize("variant", ["mamba-2", "gated deltanet", "kda"])
def test_a_state_that_is_left_out_is_zero(assert_matches_recurrence, variant):
    given = inputs(variant, T=20)
    del given["state_BHKV"]
    assert_matches_recurrence(given)


def test_one_output_may_go_unused():
    given = inputs("gated deltanet", T=20)
    for used in (0, 1):
        leaf, same = (given["k_BTGK"].clone().requires_grad_() for _ in range(2))
        op.linear_recurrence(**given | {"k_BTGK": leaf}, backend="triton")[used].sum().backward()
        reference.linear_recurrence(**given | {"k_BTGK": same})[used].sum().backward()
        torch.testing.assert_close(leaf.grad, same.grad)


def test_a_call_without_gradients_keeps_nothing():
    given = inputs("gated deltanet", T=20)
    q, k, v, decay, beta, state = given.values()
    outputs = chunks.linear_recurrence_op(
        q, k, v, decay, beta, None, None, state, None, 1.0, 16, False
    )
    assert [y.numel() for y in outputs[-2:]] == [0, 0]
    torch.testing.assert_close(outputs[0], reference.linear_recurrence(**given)[0])


class TestRWKV7:
    @pytest.mark.parametrize("tokens", [1, 17, 64, 100])
    def test_it_matches_its_reference(self, assert_matches_recurrence, tokens):
        assert_matches_recurrence(inputs_rwkv7(T=tokens))

    def test_segments_do_not_interact(self, assert_matches_recurrence):
        assert_matches_recurrence(inputs_rwkv7(H=1), segment_ids=segment_ids_of(1, 70))

    @pytest.mark.parametrize(("K", "V"), [(16, 64), (48, 40)])
    def test_heads_of_any_width(self, assert_matches_recurrence, K, V):
        assert_matches_recurrence(inputs_rwkv7(T=33, H=1, K=K, V=V))

    def test_bfloat16_errs_by_a_few_roundings(self):
        torch.manual_seed(0)
        found = errors(inputs_rwkv7(T=100, K=32, V=32, dtype=BF16))
        assert max(found.values()) < 1e-2, found


def operands(variant):
    """Arguments of the custom operators, small, for opcheck."""
    if variant == "rwkv-7":
        r, w, k, v, a, b, state = inputs_rwkv7(T=9, H=1).values()
        tensors = [r, k, v, w, None, -a, b, state, segment_ids_of(1, 9)]
    else:
        given = inputs(variant, T=9, G=1, H=1)
        names = ("q_BTGK", "k_BTGK", "v_BTHV", "decay", "beta")
        tensors = [given.get(name) for name in names]
        tensors += [None, None, given["state_BHKV"], None]
    return tensors


@pytest.mark.parametrize("variant", ["linear attention", "gated deltanet", "rwkv-7"])
def test_the_operators_pass_torchs_opcheck(variant):
    tensors = operands(variant)
    o, final, *kept = chunks.linear_recurrence_op(*tensors, 1.0, 16, True)
    torch.library.opcheck(
        chunks.linear_recurrence_backward_op, (o, final, *kept, *tensors, 1.0, 16)
    )
    leaves = [x.requires_grad_() if x is not None and x.is_floating_point() else x for x in tensors]
    torch.library.opcheck(chunks.linear_recurrence_op, (*leaves, 1.0, 16, True))


def test_the_public_api_compiles_into_one_graph(assert_matches_recurrence, monkeypatch):
    compiled = torch.compile(op.linear_recurrence, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(op, "linear_recurrence", compiled)
    assert_matches_recurrence(inputs("kda", T=20))
