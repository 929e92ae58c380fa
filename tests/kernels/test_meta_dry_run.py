"""Dry runs of operators on meta tensors for a GPU."""

import pytest
import torch

from archfront.kernels.backend import choose_backend
from archfront.kernels.meta_dry_run import dry_run_on
from archfront.kernels.recurrent import op
from archfront.kernels.requirements import Unsupported


def keys_and_values(K):
    q, k = torch.empty(2, 1, 9, 2, K, dtype=torch.bfloat16, device="meta").requires_grad_().unbind()
    return q, k, torch.empty(1, 9, 4, 64, dtype=torch.bfloat16, device="meta")


def test_a_meta_tensor_has_kernels_only_where_it_counts_as_a_gpus():
    x = torch.empty(1, device="meta")
    with dry_run_on("sm_90"):
        assert choose_backend(None, x) == "triton"
        assert choose_backend(None, torch.empty(1)) == "torch"
    assert choose_backend(None, x) == "torch"


def test_the_kernels_of_a_gpu_run_forward_and_backward():
    with dry_run_on("sm_90"):
        o, _ = op.linear_recurrence(*keys_and_values(256))
        o.sum().backward()
    with dry_run_on("sm_80"), pytest.raises(Unsupported, match=r"128 wide on sm_80 .* got K=256"):
        op.linear_recurrence(*keys_and_values(256))
    with dry_run_on("sm_80"):
        op.linear_recurrence(*keys_and_values(128))


def test_an_unknown_gpu_is_unsupported():
    constraint = r"the architecture must be one of sm_80, .* got sm_70"
    with pytest.raises(Unsupported, match=constraint), dry_run_on("sm_70"):
        pass
