"""Every row kernel beside its peers on one GPU, as a share of the copy bandwidth of the same run.

    python benchmarks/kernels.py

writes benchmarks/results/kernels_DEVICE_COMMIT.json. The peers are the reference, run eagerly and
under torch.compile, and liger-kernel where it is installed. All inputs are bfloat16.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import triton
from torch import Tensor

from archfront.kernels.rows import op, reference

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = 3
EPS = 1e-6
ROW_SHAPES = ((65_536, 128), (16_384, 2048), (16_384, 4096), (8192, 8192))
HIDDEN_SHAPES = ((65_536, 768), (16_384, 5632), (16_384, 14_336))
# operator -> shapes, inputs of [rows, width], matrices moved by the forward and by the backward
OPERATORS = {
    "rms_norm": (ROW_SHAPES, 1, {"forward": 2, "backward": 3}),
    "add_rms_norm": (ROW_SHAPES, 2, {"forward": 4, "backward": 4}),
    "swiglu": (HIDDEN_SHAPES, 2, {"forward": 3, "backward": 5}),
}

Outputs = Tensor | tuple[Tensor, ...]


def peers(operator: str) -> Iterator[tuple[str, Callable[..., Outputs]]]:
    settings = {} if operator == "swiglu" else {"eps": EPS}
    meaning = partial(getattr(reference, operator), **settings)
    yield "archfront", partial(getattr(op, operator), **settings, backend="triton")
    yield "torch eager", meaning
    yield "torch.compile", torch.compile(meaning, dynamic=False)
    if importlib.util.find_spec("liger_kernel"):
        yield f"liger {version('liger-kernel')}", liger(operator)


def liger(operator: str) -> Callable[..., Outputs]:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    # no offset, all in float32 as in the reference, gradients in memory of their own
    settings = (EPS, 0.0, "gemma", False)
    return {
        "rms_norm": lambda x, w: LigerRMSNormFunction.apply(x, w, *settings),
        "add_rms_norm": lambda x, r, w: LigerFusedAddRMSNormFunction.apply(x, r, w, *settings),
        "swiglu": LigerSiLUMulFunction.apply,
    }[operator]


def as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def milliseconds(job: Callable[[], object]) -> dict[str, float]:
    median, low, high = triton.testing.do_bench(job, quantiles=[0.5, 0.2, 0.8])
    return {"median_ms": median, "p20_ms": low, "p80_ms": high}


def copy_gb_per_s() -> float:
    source = torch.empty(2**30, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source))["median_ms"] / 1e6


def measure(operator: str, num_rows: int, width: int, copy: float) -> Iterator[dict]:
    _, num_matrices, moved = OPERATORS[operator]
    truth = None
    for peer, run in peers(operator):
        torch.manual_seed(0)
        inputs = [torch.randn(num_rows, width, dtype=torch.bfloat16) for _ in range(num_matrices)]
        if operator != "swiglu":
            inputs.append(torch.randn(width, dtype=torch.bfloat16))
        inputs = [x.requires_grad_() for x in inputs]  # each peer's own: one may write over them
        outputs = as_tuple(run(*inputs))
        cotangents = [torch.randn_like(y) for y in outputs]
        y = outputs[0].detach().float()
        truth = y if truth is None else truth
        jobs = {
            "forward": lambda run=run, inputs=inputs: run(*inputs),
            "backward": lambda outputs=outputs, inputs=inputs, cotangents=cotangents: (
                torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True)
            ),
        }
        for direction, job in jobs.items():
            timing = milliseconds(job)
            gb_per_s = moved[direction] * num_rows * width * 2 / timing["median_ms"] / 1e6
            yield {
                "operator": operator,
                "direction": direction,
                "rows": num_rows,
                "width": width,
                "dtype": "bfloat16",
                "peer": peer,
                **timing,
                "gb_per_s": gb_per_s,
                "share_of_copy": gb_per_s / copy,
                "distance_to_archfront": ((y - truth).norm() / truth.norm()).item(),
            }


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    if not torch.cuda.is_available():
        print("needs a CUDA device: not measured")
        return NOT_MEASURED
    torch.set_default_device("cuda")
    device = torch.cuda.get_device_name()
    copy = copy_gb_per_s()
    print(f"{device}: copy {copy:.0f} GB/s, read and write")
    rows = []
    for operator, (shapes, _, _) in OPERATORS.items():
        for shape in shapes:
            for row in measure(operator, *shape, copy):
                rows.append(row)
                print(
                    "{operator:13} {direction:9} {rows:>6} x {width:<6} {peer:14} "
                    "{median_ms:8.4f} ms {gb_per_s:6.0f} GB/s {share_of_copy:6.1%}".format(**row)
                )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"kernels_{device.replace(' ', '_')}_{commit()}.json"
    facts = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "copy_gb_per_s": copy,
        "rows": rows,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
