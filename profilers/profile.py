"""One candidate's twin, trained and timed: what of its report needs a run."""

import sys
import time
from functools import cache

import torch

from ..builders.body import Unbuilt
from ..search_space.accounting import Uncountable
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan
from ..search_space.proxy import proxy_architecture
from . import quality
from .corpus import Corpus, load_corpus
from .latency import proxy_latency
from .out_of_memory import is_out_of_memory, out_of_memory_reason
from .report import Failure, FailureKind, Report
from .training import NotFinite, OutOfTime

corpus_at = cache(load_corpus)  # a worker reads its corpus once


def profile(architecture: Architecture, plan: Plan, *, seed: int) -> Report | Failure:
    """Quality and speed of a candidate's twin under a plan, or the fault that ended it.

    What is known without a run is known.py's. Out of memory, a loss that is not finite and the time limit are answers (Failure); an error of
    the program itself rises.
    """
    deadline = time.monotonic() + plan.trial_seconds
    stage = "train"

    def failure(kind: FailureKind, reason: str) -> Failure:
        return Failure(key=architecture.key, stage=stage, kind=kind, reason=reason)

    try:
        local = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        corpus = corpus_at(plan.text.corpus)
        measurements = list(
            quality.quality(architecture, plan, corpus, seed=seed, device=local, deadline=deadline)
        )
        stage = "time"
        small = proxy_architecture(
            architecture, plan.proxy, context_fraction=plan.context_fraction(plan.text.context)
        )
        measurements += proxy_latency(small, plan.text, device=local)
    except NotFinite as fault:
        return failure("nan", str(fault))
    except OutOfTime as fault:
        return failure("hang", str(fault))
    except (Unbuilt, Uncountable) as fault:
        return failure("error", str(fault))
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        return failure("oom", out_of_memory_reason(fault))
    return Report(
        key=architecture.key, measurements=tuple(measurements), facts=facts(plan, corpus, seed)
    )


def facts(plan: Plan, corpus: Corpus, seed: int) -> dict[str, str]:
    """What a report's numbers hold under."""
    return {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "seed": str(seed),
        "seeds": str(plan.seeds),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
