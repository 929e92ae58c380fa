"""The cases of the kernel benchmark, as a dry run."""

import warnings

import pytest
import torch

from archfront.benchmarks import kernel_cases
from archfront.benchmarks.kernel_cases import OURS, OWN, cases
from archfront.benchmarks.kernels import prepared
from archfront.kernels.attention import op as attention
from archfront.kernels.experts import op as experts
from archfront.kernels.meta_dry_run import dry_run_on

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a peer that is installed looks for a GPU
    CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.operator} {c.direction} {c.shape}")
def test_our_side_of_a_case_runs(case):
    for name in case.implementations.keys() & {*OWN}:
        with dry_run_on("sm_90"), torch.device("meta"):
            results = prepared(case.implementations[name], case.direction)()
        assert all(y.is_meta for y in results)


def test_a_goal_compares_the_values_of_implementations():
    by_name = {case.operator: case.goal for case in CASES}
    assert by_name["swiglu"].reached({OURS: 860.0}, 1000.0)
    assert not by_name["swiglu"].reached({OURS: 840.0}, 1000.0)
    assert by_name["kda"].reached({OURS: 1.3, "scalar decay": 1.0}, 0.0)
    assert by_name["decode int8"].reached({OURS: 1.0, "bf16 pages": 1.7}, 0.0)
    assert not by_name["decode int8"].reached({OURS: 1.0, "bf16 pages": 1.5}, 0.0)


def test_the_peers_compute_the_same():
    x, chosen, topk_weights, *weights = (
        kernel_cases.mixture_case(33, 4, 2, 32, 16).implementations[OURS].inputs()
    )
    ours = experts.mixture(x, chosen, topk_weights, *weights, "silu")
    peers = kernel_cases.torch_mixture(x, chosen, topk_weights, *weights)
    torch.testing.assert_close(ours, peers, rtol=2e-2, atol=2e-2)
    query, held = kernel_cases.held(2, 64, 4, 2, 16, torch.bfloat16)
    o, _ = attention.attend_cached(query, held)
    torch.testing.assert_close(o, kernel_cases.dense(query, held), rtol=2e-2, atol=2e-2)
