"""Ahead-of-time compilation of every kernel, with its resources checked against the GPU's limits.

    python -m archfront.kernels.compiled [ARCH ...]

prints registers and stack per thread, shared memory per program (both in bytes) and the number of
tensor-core instructions for every kernel, shape and architecture in configs.ARCHS, or for those
given, and exits 1 if one violates a limit. It needs no GPU, and a process without TRITON_INTERPRET.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from .attention import compile_cases as attention
from .configs import ARCHS
from .experts import compile_cases as experts
from .launch import INTERPRETED, Launch
from .recurrent import compile_cases as recurrent
from .rows import compile_cases as rows
from .scaled import compile_cases as scaled

# SASS mnemonics: per warp, Hopper's per warp group, Blackwell's
TENSOR_CORE = "HMMA|IMMA|QMMA|HGMMA|IGMMA|QGMMA|UTC[A-Z]*MMA"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of a compiled kernel, read from its cubin and Triton's intermediate code."""

    registers: int  # per thread
    stack_bytes: int  # per thread; above zero, registers spill
    shared_bytes: int  # per program
    dots: int  # matrix products in the source
    tensor_core_instructions: int  # in the binary
    transposed_accumulators: int  # see `violations`


def compile_for(launch: Launch, arch: str) -> Resources:
    """Resources of `launch` compiled for `arch` ("sm_90"); its tensors may be meta tensors.

    Arguments are specialized by the launcher's own binder: a stride or a pointer that is not
    declared divisible by 16 would be loaded byte by byte, and the numbers would be wrong.
    """
    assert not INTERPRETED, "compilation needs a process without TRITON_INTERPRET"
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    backend = make_backend(target)
    kernel = launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.options)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, launch.options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constexprs, attrs)
    binary = triton.compile(source, target=target, options=vars(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(binary.asm["cubin"])
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name)
        assembly = _output(knobs.nvidia.nvdisasm.path, "-c", cubin.name)
    registers, stack_bytes = map(int, re.findall(r"(?:REG|STACK):(\d+)", usage))
    return Resources(
        registers=registers,
        stack_bytes=stack_bytes,
        shared_bytes=binary.metadata.shared,
        dots=len(re.findall(r"tt\.dot\b", binary.asm["ttir"])),
        tensor_core_instructions=len(re.findall(rf"\b(?:{TENSOR_CORE})\b", assembly)),
        transposed_accumulators=len(
            re.findall(r"tt\.trans .* : tensor<[^>]*, #mma\d*>", binary.asm["ttgir"])
        ),
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def violations(resources: Resources, arch: str) -> list[str]:
    """Messages for the limits that `resources` exceeds and the compiler does not enforce.

    On Hopper, triton 3.4.0 to 3.7.0 silently computes a wrong product where the transpose of a
    dot's result feeds the next dot (flash-linear-attention pull request 826): load the operand
    transposed, or compute the transposed product.
    """
    exceeded = []
    if resources.stack_bytes > 0:
        exceeded.append(f"registers must not spill, got stack_bytes={resources.stack_bytes}")
    limit = ARCHS[arch].shared_bytes
    if resources.shared_bytes > limit:
        exceeded.append(f"shared_bytes must be <= {limit}, got {resources.shared_bytes}")
    if resources.dots > 0 and resources.tensor_core_instructions == 0:
        exceeded.append(f"a dot must run on tensor cores, got dots={resources.dots} and none")
    if arch == "sm_90" and resources.transposed_accumulators > 0:
        exceeded.append(
            f"no accumulator may be transposed on {arch}, got {resources.transposed_accumulators}"
        )
    return exceeded


FAMILIES = (attention, recurrent, rows, experts, scaled)


def launches(arch: str) -> Iterator[tuple[str, str, Launch]]:
    """(kernel, shape, launch): every kernel at the shapes of its family's compile_cases.py.

    A kernel that does not exist on `arch`, such as FP8 on sm_80, is left out there.
    """
    for family in FAMILIES:
        yield from family.launches(arch)


def main() -> int:
    """Print the resources of every kernel; 1 if one violates a limit."""
    parser = argparse.ArgumentParser(
        prog="python -m archfront.kernels.compiled",
        description="Compile every kernel and check its resources; minutes per architecture.",
    )
    parser.add_argument(
        "archs",
        nargs="*",
        metavar="ARCH",
        help=f"GPU architectures (default: all of {', '.join(ARCHS)})",
    )
    archs = parser.parse_args().archs or list(ARCHS)
    for arch in archs:
        if arch not in ARCHS:
            parser.error(f"unknown architecture {arch!r}; known: {', '.join(ARCHS)}")
    if INTERPRETED:
        parser.error("compilation needs a process without TRITON_INTERPRET")
    columns = ("registers", "stack_bytes", "shared_bytes", "tensor_core")
    line = "{:6} {:23} {:58} {:>9} {:>11} {:>12} {:>11}  {}".format
    sys.stdout.write(line("arch", "kernel", "shape", *columns, "violations") + "\n")
    failed = False
    for arch in archs:
        for kernel, shape, launch in launches(arch):
            cost = compile_for(launch, arch)
            exceeded = violations(cost, arch)
            failed = failed or bool(exceeded)
            numbers = (
                cost.registers,
                cost.stack_bytes,
                cost.shared_bytes,
                cost.tensor_core_instructions,
            )
            plain = shape.replace("torch.", "")
            row = line(arch, kernel, plain, *numbers, "; ".join(exceeded)).rstrip()
            sys.stdout.write(row + "\n")
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
