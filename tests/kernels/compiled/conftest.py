"""Kernels compiled ahead of time for every architecture: run without TRITON_INTERPRET."""

import pytest
import triton


@pytest.fixture(autouse=True)
def compiler():
    if triton.knobs.runtime.interpret:
        pytest.skip("run without TRITON_INTERPRET: pytest tests/kernels/compiled")
