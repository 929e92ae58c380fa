"""A timing job in a process of its own: JSON in on stdin, JSON out on stdout.

    python -m archfront.profilers.timing.worker < job.json

The architecture is built at full size with random weights, in bfloat16 on a GPU and in float32 on
a CPU, its caches are filled at random up to the context, and it is timed. Out of memory is an
answer; an error of the device ends this process, and the caller goes on.
"""

import copy
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import torch

from ...builders.body import Pass, text_positions
from ...builders.caches import TokenCache
from ...builders.model import HybridLM, build
from ...search_space.architecture import Architecture
from ...search_space.operators import Point
from ..lowering import EMBEDDING_AND_HEAD
from ..out_of_memory import is_out_of_memory
from .measure import PROTOCOL
from .protocol import Timing, sets_needed, timed

PARITY_TOKENS = 64
PARITY_LIMIT = 4e-2  # relative error of bfloat16 kernels against float32 torch


def main() -> None:
    """Read one job from stdin and write its answer to stdout."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    try:
        answer = run(job)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or "out of memory").splitlines()[0]
        answer = {"failure": "oom", "reason": reason}
    sys.stdout.write(json.dumps(answer))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Time the job's architecture at its point: the fields of `Timed` that a device decides.

    A job has `architecture`, `kind` (see `measure.Kind`), `point`, `device` and `threads`. Raises
    ArithmeticError where the kernels of a GPU do not compute what the reference does.
    """
    architecture = Architecture.model_validate(job["architecture"])
    device, point = torch.device(job["device"]), Point(**job["point"])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _check_parity(architecture, device)
    with torch.inference_mode():
        found = _time(architecture, job["kind"], point, device, dtype)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {**vars(found), "peak_bytes": peak, "facts": facts(device)}


def _time(
    architecture: Architecture, kind: str, point: Point, device: torch.device, dtype: torch.dtype
) -> Timing:
    first = build(architecture, device=device, dtype=dtype).eval()
    touched = sum(p.numel() * p.element_size() for p in first.parameters())
    calls = []
    for _ in range(sets_needed(touched, device)):
        model = copy.deepcopy(first) if calls else first
        calls.append(_call(model, kind, point, dtype))
    return timed(calls, device, graph=point.decode)


def _call(model: HybridLM, kind: str, point: Point, dtype: torch.dtype) -> Callable[[], object]:
    device, architecture = model.embedding.weight.device, model.architecture
    generator = torch.Generator(device).manual_seed(0)
    shape = (point.batch, point.tokens)
    tokens = torch.randint(architecture.vocab_size, shape, generator=generator, device=device)
    if kind == EMBEDDING_AND_HEAD:
        return lambda: model.logits(model.norm(model.embed(tokens))[:, -1])
    if kind == "whole" and not point.decode:
        return lambda: model.prefill(tokens)
    before = point.context - point.tokens
    if kind == "whole":
        caches = model.fill_random(point.batch, before)
        return _repeatable(lambda: model.step(tokens[:, 0], caches), caches.blocks)
    x = torch.randn(*shape, architecture.d_model, generator=generator, device=device, dtype=dtype)
    run = Pass(
        positions_BT=text_positions(point.batch, point.tokens, device) + before,
        tokens_BT=tokens,
        embedded_BTD=x,
        whole_rows=not point.decode,
    )
    streams = architecture.hyper_connections
    if streams is not None:
        x = x[:, :, None].expand(-1, -1, streams.streams, -1)
    *earlier, block = model.blocks
    held = model.fill_random(point.batch, before).blocks if point.decode else None
    for index, other in enumerate(earlier):  # the timed block may read what it leaves in the pass
        other(x, run, held[index] if held else None)

    def call() -> object:
        cache = held[-1] if held else block.new_cache(point.batch)
        # as in a stack: the sum before a norm is part of its kernel
        return block.advance((x, x if block.reads_sum else None), run.copy(), cache)

    return _repeatable(call, held[-1:]) if held else call


def _repeatable(call: Callable[[], object], caches: list[Any]) -> Callable[[], object]:
    """The call with the lengths of its caches reset after it, so that every call does the same."""
    kept = [cache for cache in caches if isinstance(cache, TokenCache)]

    def once() -> object:
        found = call()
        for cache in kept:
            cache.lengths = [length - 1 for length in cache.lengths]
        return found

    return once


def _check_parity(architecture: Architecture, device: torch.device) -> None:
    """Compare logits with the float32 reference on the CPU. Raises ArithmeticError."""
    model = build(architecture, device=device, dtype=torch.bfloat16).eval()
    exact = build(architecture, dtype=torch.float32).eval()
    exact.load_state_dict(model.state_dict())
    tokens = torch.randint(architecture.vocab_size, (1, PARITY_TOKENS))
    with torch.inference_mode():
        expected = exact(tokens)
        found = model(tokens.to(device)).float().cpu()
    error = ((found - expected).norm() / expected.norm()).item()
    if not error < PARITY_LIMIT:
        raise ArithmeticError(f"kernels differ from their reference by {error:.1%}")


def facts(device: torch.device) -> dict[str, str]:
    """The software a timing depends on; part of its key."""
    found = {
        "protocol": str(PROTOCOL),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": kernel_sources(),
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        import triton

        found |= {"triton": triton.__version__, "cuda": str(torch.version.cuda)}
    return found


def kernel_sources() -> str:
    """12 hex digits of the sources of all kernels."""
    import hashlib
    from importlib.resources import files

    digest = hashlib.sha256()
    for family in sorted(files("archfront.kernels").iterdir(), key=lambda p: p.name):
        if family.is_dir():
            for file in sorted(family.iterdir(), key=lambda p: p.name):
                if file.name.endswith(".py"):
                    digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    main()
