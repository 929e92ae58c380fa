"""Recurrences against their reference on a GPU: run as `pytest -m gpu tests/kernels/gpu`."""

import pytest
import torch
from torch.nn import functional as F

from archfront.kernels.configs import arch_of
from archfront.kernels.recurrent import configs, op, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]
BF16 = torch.bfloat16
DTYPES = [torch.float32, BF16]
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
# sequences, tokens, key heads, value heads, key width, value width
SEQUENCES = [(1, 1, 1, 1, 16, 16), (2, 17, 2, 4, 40, 24), (2, 1000, 2, 8, 128, 128)]
WIDE_TEXTS = [(1, 500, 1, 16, 128, 64), (1, 500, 3, 3, 96, 192), (3, 500, 2, 2, 64, 256)]


@pytest.fixture(autouse=True)
def on_the_gpu():
    """NaN-filled as in conftest.py, but cuBLAS may run the reference without its variable."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield
    torch.use_deterministic_algorithms(False)


def given(variant, shape, dtype):
    B, T, G, H, K, V = shape
    decay, delta = VARIANTS[variant]
    decays = {
        "head": lambda: -torch.rand(H),
        "token": lambda: F.logsigmoid(torch.randn(B, T, H)),
        "channel": lambda: -5 * torch.rand(B, T, H, K),
    }
    inputs = {
        "q_BTGK": torch.randn(B, T, G, K).to(dtype),
        "k_BTGK": F.normalize(torch.randn(B, T, G, K), dim=-1).to(dtype),
        "v_BTHV": torch.randn(B, T, H, V).to(dtype),
        "decay": decays[decay]() if decay else None,
        "beta": 2 * torch.rand(B, T, H) if delta else None,
        "state_BHKV": torch.randn(B, H, K, V),
    }
    return {name: x for name, x in inputs.items() if x is not None}


def given_rwkv7(shape, dtype):
    B, T, _, H, K, V = shape
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


def segment_ids_of(batch, tokens, length=237):
    segment = torch.arange(tokens, dtype=torch.int32) // length
    return segment.expand(batch, tokens).contiguous()


def results(function, inputs, **settings):
    """Outputs and gradients by name."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    outputs = function(**leaves, **settings)
    torch.manual_seed(1)
    cotangents = [torch.randn(y.shape).to(y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    return dict(
        zip(["o", "state", *(f"d{n}" for n in leaves)], [*outputs, *gradients], strict=True)
    )


def assert_matches_reference(name, inputs, scale=1.0, chunk=64, **settings):
    """Relative error of 1e-5 in float32, of a few roundings of products in bfloat16."""
    bound = 1e-5 if inputs["v_BTHV"].dtype == torch.float32 else 1e-2
    wide = {key: x.double() for key, x in inputs.items()}
    if name == "linear_recurrence":
        settings["scale"] = scale
    expected = results(getattr(reference, name), wide, **settings)
    ours = results(getattr(op, name), inputs, chunk=chunk, **settings)
    found = {
        key: ((y - expected[key]).norm() / expected[key].norm()).item() for key, y in ours.items()
    }
    assert max(found.values()) < bound, found


@pytest.mark.parametrize("shape", SEQUENCES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_variant_matches_its_reference(variant, shape, dtype):
    assert_matches_reference(
        "linear_recurrence", given(variant, shape, dtype), scale=shape[4] ** -0.5
    )


@pytest.mark.parametrize("shape", WIDE_TEXTS)
@pytest.mark.parametrize("variant", ["mamba-2", "gated deltanet", "kda"])
def test_heads_of_public_models_match_their_reference(variant, shape):
    assert_matches_reference(
        "linear_recurrence", given(variant, shape, BF16), scale=shape[4] ** -0.5
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_segments_do_not_interact(variant):
    shape = (2, 1000, 2, 4, 64, 64)
    assert_matches_reference(
        "linear_recurrence", given(variant, shape, BF16), segment_ids=segment_ids_of(*shape[:2])
    )


@pytest.mark.parametrize("chunk", configs.CHUNKS)
@pytest.mark.parametrize("variant", ["gated deltanet", "kda"])
def test_the_chunk_size_does_not_change_the_result(variant, chunk):
    assert_matches_reference(
        "linear_recurrence", given(variant, (1, 300, 2, 2, 64, 64), BF16), chunk=chunk
    )


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 16, 16), (2, 500, 4, 4, 64, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rwkv7_matches_its_reference(shape, dtype):
    inputs = given_rwkv7(shape, dtype)
    assert_matches_reference("rwkv7_recurrence", inputs)
    assert_matches_reference("rwkv7_recurrence", inputs, segment_ids=segment_ids_of(*shape[:2]))


@pytest.mark.parametrize("variant", ["mamba-2", "kda"])
def test_keys_of_256_run_where_there_are_warp_groups(variant):
    if arch_of(torch.device("cuda", 0)) not in configs.WITH_WARP_GROUPS:
        pytest.skip("no warp groups on this device")
    assert_matches_reference(
        "linear_recurrence", given(variant, (1, 300, 1, 2, 256, 64), BF16), scale=1 / 16
    )


# sequences, tokens, channels, states
SCANS = [(1, 1, 3, 1), (2, 17, 100, 5), (2, 1000, 1024, 16)]


@pytest.mark.parametrize(("sequences", "tokens", "channels", "states"), SCANS)
@pytest.mark.parametrize("segment_ids", [None, segment_ids_of])
def test_the_channel_scans_match_their_reference(sequences, tokens, channels, states, segment_ids):
    segment_ids = segment_ids and segment_ids(sequences, tokens)
    x, gate = torch.randn(2, sequences, tokens, channels)
    of_states = torch.randn(2, sequences, tokens, states)
    calls = {
        "channel_scan": {"x_BTN": x, "decay_BTN": -gate.abs(), "state_BN": x[:, 0]},
        "selective_scan": {
            "x_BTN": x,
            "dt_BTN": gate.abs(),
            "A_NS": -torch.rand(channels, states),
            "B_BTS": of_states[0],
            "C_BTS": of_states[1],
            "D_N": torch.randn(channels),
            "state_BNS": torch.randn(sequences, channels, states),
        },
    }
    for name, inputs in calls.items():
        wide = {key: y.double() for key, y in inputs.items()}
        expected = results(getattr(reference, name), wide, segment_ids=segment_ids)
        ours = results(getattr(op, name), inputs, segment_ids=segment_ids)
        for key, y in ours.items():
            assert (y - expected[key]).norm() <= 1e-5 * expected[key].norm(), (name, key)


@pytest.mark.parametrize("variant", [*VARIANTS, "rwkv-7"])
def test_steps_equal_the_whole_sequence(variant):
    tokens, shape = 9, (3, 9, 4, 4, 64, 64)
    rwkv7 = variant == "rwkv-7"
    inputs = given_rwkv7(shape, torch.float32) if rwkv7 else given(variant, shape, torch.float32)
    recurrence, step = (
        (op.rwkv7_recurrence, op.rwkv7_recurrence_step)
        if rwkv7
        else (op.linear_recurrence, op.linear_recurrence_step)
    )
    state = inputs.pop("state_BHKV")
    whole, last = recurrence(**inputs, state_BHKV=state)
    given_in_order = list(inputs.values())
    if not rwkv7:
        given_in_order = [*given_in_order[:3], inputs.get("decay"), inputs.get("beta")]
    reads = []
    for t in range(tokens):
        token = [x if x is None or x.dim() == 1 else x[:, t] for x in given_in_order]
        reads.append(step(*token, state))
    torch.testing.assert_close(torch.stack(reads, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


def test_integers_are_summed_exactly():
    """Without decay all intermediates are small integers: only the results are rounded."""
    whole = torch.randint(-1, 2, (4, 1, 200, 2, 64)).to(BF16)

    def run(module, dtype):
        *leaves, do = whole.to(dtype).unbind()
        leaves = [x.clone().requires_grad_() for x in leaves]
        o, state = module.mix(*leaves)
        return o, state, *torch.autograd.grad(o, leaves, do)

    for ours, exact in zip(run(op, BF16), run(reference, torch.float64), strict=True):
        assert torch.equal(ours, exact.to(ours.dtype))


@pytest.mark.parametrize("variant", [*VARIANTS, "rwkv-7"])
def test_three_runs_give_the_same_bits(variant):
    shape = (2, 2000, 2, 16, 128, 128)
    if variant == "rwkv-7":
        function, inputs = op.rwkv7_recurrence, given_rwkv7((2, 2000, 16, 16, 64, 64), BF16)
    else:
        function, inputs = op.linear_recurrence, given(variant, shape, BF16)
    first = results(function, inputs)
    for _ in range(2):
        again = results(function, inputs)
        assert all(torch.equal(first[name], y) for name, y in again.items())


def test_elements_past_two_to_the_31_are_reached():
    B, T, H, K = 2, 70_000, 128, 128
    q, k, v = (torch.randn(B, T, H, K, dtype=BF16) for _ in range(3))
    decay = torch.full((B, T, H), -1.0)  # after 300 tokens nothing of the state is left
    k /= K**0.5
    o, state = op.linear_recurrence(q, k, v, decay)
    tail = [x[-1:, -300:, -1:].double() for x in (q, k, v, decay)]
    expected, last = reference.linear_recurrence(*tail)
    assert (o[-1:, -50:, -1:] - expected[:, -50:]).norm() < 1e-2 * expected[:, -50:].norm()
    assert (state[-1:, -1:] - last).norm() < 1e-2 * last.norm()


def test_the_public_api_compiles_into_one_graph(monkeypatch):
    monkeypatch.setattr(
        op, "linear_recurrence", torch.compile(op.linear_recurrence, fullgraph=True)
    )
    assert_matches_reference(
        "linear_recurrence", given("gated deltanet", (2, 300, 2, 4, 64, 64), BF16)
    )
