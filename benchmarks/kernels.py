"""Every kernel beside its peers on one GPU, with its goal.

    python benchmarks/kernels.py [OPERATOR ...]

writes benchmarks/results/kernels_DEVICE_COMMIT.json. kernel_cases.py lists the cases: the peers are
torch's own operators, the reference under torch.compile, and liger-kernel and fla-core where they
are installed. A peer that does not run is reported with its reason; ours must run.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from archfront.benchmarks.kernel_cases import OURS, OWN, Case, Implementation, Outputs, cases

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = 3
PEER_FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ImportError)


def as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def milliseconds(job: Callable[[], object]) -> dict[str, float]:
    """Median, 20th and 80th percentile of the time of a call."""
    median, low, high = triton.testing.do_bench(job, quantiles=[0.5, 0.2, 0.8])
    return {"median_ms": median, "p20_ms": low, "p80_ms": high}


def copy_gb_per_s() -> float:
    """Bandwidth of a 1 GiB copy on the device, read and write together."""
    source = torch.empty(2**30, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source))["median_ms"] / 1e6


def prepared(implementation: Implementation, direction: str) -> Callable[[], tuple[Tensor, ...]]:
    """The call that is timed: the forward without gradients, or all gradients of one forward."""
    torch.manual_seed(0)
    inputs = implementation.inputs()  # each implementation's own: one may write over them
    if direction == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return as_tuple(implementation.run(*inputs))

        return forward
    leaves = [x.requires_grad_() for x in inputs]
    outputs = as_tuple(implementation.run(*leaves))
    cotangents = [torch.randn_like(y) for y in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)


def measure(case: Case) -> dict[str, dict[str, Any]]:
    """Per implementation: timing, value, and distance of its first result to ours; or its error."""
    found: dict[str, dict[str, Any]] = {}
    ours = None
    for name, implementation in case.implementations.items():
        try:
            call = prepared(implementation, case.direction)
            y = call()[0].detach().float()
            timing = milliseconds(call)
        except PEER_FAULTS as fault:
            if name in OWN:
                raise
            found[name] = {"fault": f"{type(fault).__name__}: {fault}".splitlines()[0]}
            continue
        ours = y if ours is None else ours
        same = implementation.inputs is case.implementations[OURS].inputs
        found[name] = {
            **timing,
            "value": case.value(implementation, timing["median_ms"] / 1e3),
            "distance_to_archfront": ((y - ours).norm() / ours.norm()).item() if same else None,
        }
    return found


def report(case: Case, found: dict[str, dict[str, Any]], reached: bool) -> None:
    """Print the case, its goal and the value of each implementation."""
    goal = f"goal {case.goal.description}: {'reached' if reached else 'missed'}"
    print(f"\n{case.operator} {case.direction}, {case.shape}, {case.unit}; {goal}")
    for name, facts in found.items():
        if "fault" in facts:
            print(f"  {name:16} did not run: {facts['fault']}")
        else:
            print(f"  {name:16} {facts['value']:9.2f} {case.unit:9} {facts['median_ms']:9.4f} ms")


def commit() -> str:
    """The commit that is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    if not torch.cuda.is_available():
        print("needs a CUDA device: not measured")
        return NOT_MEASURED
    torch.set_default_device("cuda")
    device, wanted = torch.cuda.get_device_name(), sys.argv[1:]
    copy = copy_gb_per_s()
    print(f"{device}: copy {copy:.0f} GB/s, read and write; bfloat16")
    lines = []
    for case in cases():
        if wanted and case.operator not in wanted:
            continue
        found = measure(case)
        values = {name: facts["value"] for name, facts in found.items() if "value" in facts}
        reached = case.goal.reached(values, copy)
        report(case, found, reached)
        lines.append(
            {
                "operator": case.operator,
                "direction": case.direction,
                "shape": case.shape,
                "unit": case.unit,
                "goal": case.goal.description,
                "reached": reached,
                "implementations": found,
            }
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"kernels_{device.replace(' ', '_')}_{commit()}.json"
    facts = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "commit": commit(),
        "dtype": "bfloat16",
        "copy_gb_per_s": copy,
        "cases": lines,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")
    missed = sum(not line["reached"] for line in lines)
    print(f"\n{len(lines) - missed} of {len(lines)} goals reached; {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
