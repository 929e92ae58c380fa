"""Training speed of proxy models on one core, and of recurrences against per-token loops.

    OMP_NUM_THREADS=1 python benchmarks/cpu.py

All cases run in turns and the fastest turn counts, since other load only slows a run down.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from archfront.builders.model import build
from archfront.kernels.recurrent import eager, reference
from archfront.profilers.training import Training
from archfront.search_space.architecture import Architecture

TURNS = 5
BATCH, TOKENS, D_MODEL, VOCABULARY = 8, 256, 128, 256
STEPS = 3  # per turn; their median counts
TOKENS_PER_S_GOAL, RATIO_GOAL = 6000, 3.0
BLOCKS = {
    "*": {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 32},
    "M": {"kind": "mamba2", "heads": 8, "head_dim": 32, "d_state": 32},
    "G": {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 32, "v_head_dim": 32},
    "K": {"kind": "kda", "heads": 4, "k_head_dim": 32, "v_head_dim": 32, "gate_rank": 32},
    "-": {"kind": "ffn", "width": 384},
}
PATTERNS = ("*-*-*-*-", "M-M-M-*-", "G-G-G-*-", "K-K-K-*-")
RECURRENCES = {  # dimensions of the decay after [B, T], and whether it is a delta rule
    "linear attention": (0, False),
    "deltanet": (0, True),
    "mamba-2": (1, False),
    "gated deltanet": (1, True),
    "gla": (2, False),
    "kda": (2, True),
}
Call = tuple[str, Sequence[Tensor | None]]


def architecture(pattern: str) -> Architecture:
    """A proxy-sized model of the benchmark's blocks."""
    used = {symbol: block for symbol, block in BLOCKS.items() if symbol in pattern}
    return Architecture.model_validate(
        {
            "d_model": D_MODEL,
            "vocab_size": VOCABULARY,
            "tied_embeddings": True,
            "pattern": pattern,
            "blocks": used,
        }
    )


def seconds_per_step(pattern: str) -> float:
    """Median seconds of a training step."""
    model = build(architecture(pattern), device=torch.device("cpu"), seed=0)
    windows = torch.randint(VOCABULARY, (STEPS, BATCH, TOKENS + 1))

    def loss_of(windows_BT: Tensor) -> Tensor:
        logits_BTV = model(windows_BT[:, :-1])
        return F.cross_entropy(logits_BTV.mT.float(), windows_BT[:, 1:])

    training = Training(
        model, windows, steps=STEPS, learning_rate=1e-3, loss_of=loss_of, deadline=float("inf")
    )
    training.advance(1.0)
    return training.seconds_per_step


def recurrences() -> dict[str, Call]:
    """(function name, inputs) of each recurrence, in both implementations."""
    B, T, H, K, N, S = BATCH, TOKENS, 4, 32, 2 * D_MODEL, 16
    unit = F.normalize(torch.randn(B, T, H, K), dim=-1)
    q, v, b = torch.randn(3, B, T, H, K)
    decays = (None, -torch.rand(B, T, H), -torch.rand(B, T, H, K))
    beta = torch.rand(B, T, H)
    found: dict[str, Call] = {
        name: ("linear_recurrence", (q, unit, v, decays[axes], beta if delta else None))
        for name, (axes, delta) in RECURRENCES.items()
    }
    found["rwkv-7"] = ("rwkv7_recurrence", (q, decays[2], unit, v, -unit, unit * b.sigmoid()))
    x, gate = torch.randn(2, B, T, N)
    found["rg-lru"] = ("channel_scan", (x, -gate.abs()))
    of_states = torch.randn(B, T, S), torch.randn(B, T, S)
    rates = (gate.abs(), -torch.rand(N, S))
    found["mamba-1"] = ("selective_scan", (x, *rates, *of_states, torch.randn(N)))
    return found


def forward_and_backward(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor | None]
) -> float:
    """Seconds of one forward and backward of a recurrence."""
    leaves = [x if x is None else x.clone().requires_grad_() for x in inputs]
    begin = time.perf_counter()
    o, _ = function(*leaves)
    o.backward(torch.ones_like(o))
    return time.perf_counter() - begin


def fastest(jobs: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The least result of each job over TURNS turns."""
    turns = [{name: job() for name, job in jobs.items()} for _ in range(TURNS)]
    return {name: min(turn[name] for turn in turns) for name in jobs}


def main() -> int:
    """Print both tables; 1 where a goal is missed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, batch {BATCH}, {TOKENS} tokens, float32")
    missed = 0
    jobs = {pattern: partial(seconds_per_step, pattern) for pattern in PATTERNS}
    print(f"\n{'d_model 128':18} {'tokens/s':>9} {'goal':>7}")
    for pattern, seconds in fastest(jobs).items():
        rate = BATCH * TOKENS / seconds
        missed += rate < TOKENS_PER_S_GOAL
        print(f"{pattern:18} {rate:9.0f} {TOKENS_PER_S_GOAL:7} {verdict(rate, TOKENS_PER_S_GOAL)}")
    print(f"\n{'recurrence':18} {'chunks ms':>9} {'loop ms':>9} {'ratio':>6} {'goal':>5}")
    for name, (function, inputs) in recurrences().items():
        both = fastest(
            {
                module.__name__: partial(forward_and_backward, getattr(module, function), inputs)
                for module in (eager, reference)
            }
        )
        ours, loop = (1e3 * seconds for seconds in both.values())
        missed += loop / ours < RATIO_GOAL
        result = f"{loop / ours:6.1f} {RATIO_GOAL:5.1f} {verdict(loop / ours, RATIO_GOAL)}"
        print(f"{name:18} {ours:9.1f} {loop:9.1f} {result}")
    return int(missed > 0)


def verdict(value: float, goal: float) -> str:
    return "reached" if value >= goal else "missed"


if __name__ == "__main__":
    sys.exit(main())
