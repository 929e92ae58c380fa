from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from archfront.kernels.compiled import Resources, compile_for, launches, violations
from archfront.kernels.configs import ARCHS
from archfront.kernels.launch import Launch
from archfront.kernels.requirements import Unsupported
from archfront.kernels.rows.configs import TABLE, config_for

# RWKV-7's second backward launch: 24 bytes at best, of 4 to 16 warps and 16 to 64 values per tile
SPILLS = pytest.mark.xfail(strict=True, reason="spills on sm_120 in every configuration tried")

ROWS = [
    pytest.param(
        launch,
        arch,
        id=f"{kernel} {shape} {arch}",
        marks=SPILLS if (kernel, arch) == ("bwd_inputs b", "sm_120") else (),
    )
    for arch in ARCHS
    for kernel, shape, launch in launches(arch)
]


@pytest.mark.parametrize(("launch", "arch"), ROWS)
def test_a_kernel_stays_within_the_limits_of_its_architecture(launch, arch):
    resources = compile_for(launch, arch)
    assert resources.registers > 0
    assert violations(resources, arch) == []


FREE = Resources(
    registers=1,
    stack_bytes=0,
    shared_bytes=0,
    dots=0,
    tensor_core_instructions=0,
    transposed_accumulators=0,
)


@triton.jit
def copy(x_ptr, y_ptr, width, SIZE: tl.constexpr):
    col = tl.arange(0, SIZE)
    tl.store(y_ptr + col, tl.load(x_ptr + col, mask=col < width), mask=col < width)


@triton.jit
def transposed_accumulator(x_ptr, y_ptr, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)[:, None]
    at = row * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + at)
    product = tl.dot(x, x).to(tl.bfloat16)
    tl.store(y_ptr + at, tl.dot(tl.trans(product), x))


@triton.jit
def high_register_pressure(x_ptr, y_ptr, SIZE: tl.constexpr):
    col = tl.arange(0, SIZE)
    x = tl.load(x_ptr + col)
    total = tl.sum(x, 0)
    tl.store(y_ptr + col, x * total)


def squares(kernel, size, warps, dtype=torch.bfloat16):
    x = torch.empty(size, size, dtype=dtype, device="meta")
    arguments = {"x_ptr": x, "y_ptr": x.float(), "SIZE": size}
    return Launch(kernel=kernel, grid=(1,), arguments=arguments, warps=warps)


def test_a_transposed_accumulator_is_found_on_hopper_alone():
    launch = squares(transposed_accumulator, 64, 4)
    assert any(
        "transposed" in constraint
        for constraint in violations(compile_for(launch, "sm_90"), "sm_90")
    )
    assert not any(
        "transposed" in constraint
        for constraint in violations(compile_for(launch, "sm_80"), "sm_80")
    )


def test_a_spill_is_found():
    launch = squares(high_register_pressure, 32_768, 4, torch.float32)
    assert any(
        "spill" in constraint for constraint in violations(compile_for(launch, "sm_90"), "sm_90")
    )


def test_shared_memory_is_held_to_the_limit_of_the_architecture():
    resources = replace(FREE, shared_bytes=200_000)
    assert violations(resources, "sm_80") == ["shared_bytes must be <= 166912, got 200000"]
    assert violations(resources, "sm_90") == []


def test_a_dot_off_the_tensor_cores_is_found():
    assert violations(replace(FREE, dots=2, tensor_core_instructions=8), "sm_90") == []
    assert violations(replace(FREE, dots=2), "sm_90") == [
        "a dot must run on tensor cores, got dots=2 and none"
    ]


def test_the_launchers_own_specialization_is_compiled():
    x = torch.empty(4096, dtype=torch.bfloat16, device="meta")
    arguments = {"x_ptr": x, "y_ptr": x, "SIZE": 4096}
    even, odd = (
        compile_for(
            Launch(kernel=copy, grid=(1,), arguments=arguments | {"width": width}, warps=4), "sm_90"
        )
        for width in (4096, 4095)
    )
    assert even.registers < odd.registers


@pytest.mark.parametrize(("arch", "kernel"), TABLE)
def test_a_width_gets_the_narrowest_class_that_holds_it(arch, kernel):
    blocks = [config.block for config in TABLE[arch, kernel]]
    assert blocks == sorted(blocks)
    assert [config_for(arch, kernel, block).block for block in blocks] == blocks
    assert config_for(arch, kernel, 65).block == 128
    with pytest.raises(Unsupported, match=f"needs width <= {blocks[-1]} on {arch}"):
        config_for(arch, kernel, blocks[-1] + 1)


def test_an_unknown_architecture_is_unsupported():
    with pytest.raises(Unsupported, match=f"one of {', '.join(ARCHS)}, got sm_70"):
        config_for("sm_70", "swiglu", 64)
