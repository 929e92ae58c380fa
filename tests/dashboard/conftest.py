"""A real store with studies of the demo space: real architectures and counts, made-up quality."""

import random
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from archfront.orchestrator.store import Objective, Store, open_store
from archfront.profilers.cluster import cluster
from archfront.profilers.memory import GIB, memory
from archfront.profilers.pricing import Pricing, TargetTimings
from archfront.profilers.report import Failure, Measurement, Report
from archfront.search_space.accounting import cache_bytes, flops_per_token, parameters, weight_bytes
from archfront.search_space.architecture import ATTENTION_KINDS, Architecture
from archfront.search_space.check import load_space
from archfront.search_space.metrics import METRICS
from archfront.search_space.space import SearchSpace, sample

HOSTILE = "<img src=x onerror=alert(1)> ![x](http://example.invalid/x.png) **bold** $x$ :red[y]"
FAILURES = {
    7: ("train", "error", HOSTILE),
    18: ("train", "nan", "loss is nan at step 40"),
    31: ("train", "nan", "loss is nan at step 40"),
}
MAX_MEMORY_GIB = 1.5  # a made-up constraint that some candidates violate


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a store with the studies `tiny-1`, of 45 trials, and `waiting`, of none."""
    url = f"sqlite:///{tmp_path_factory.mktemp('store')}/runs.db"
    space = load_space(Path(str(files("archfront.examples") / "tiny.yaml")))
    with open_store(url) as store:
        begin(store, space, "waiting")
        fill(store, space, "tiny-1", trials=45)
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with open_store(store_url, readonly=True) as opened:
        yield opened


@pytest.fixture
def hostile() -> str:
    """The reason why trial 7 failed: markup that must not be rendered."""
    return HOSTILE


def begin(store: Store, space: SearchSpace, name: str) -> None:
    store.create_study(
        name=name,
        space_yaml=space.document.text,
        space_name=space.name,
        objectives=[
            Objective(label=label, better=METRICS[label].better or "lower")
            for label in space.file.objectives
        ],
        seed=0,
        sampler="tpe",
        target=space.plan.target,
        trials_wanted=100,
    )


def fill(store: Store, space: SearchSpace, name: str, *, trials: int) -> None:
    """A study in which three trials fail, every tenth is rejected and the others complete."""
    begin(store, space, name)
    for number, architecture in enumerate(sample(space, 2 * trials, seed=0).legal[:trials]):
        drawn = {"layout.ratio": 0.25}
        if number % 10 == 9:
            store.reject_trial(name, number, drawn, "duplicate of trial 3", architecture)
            continue
        store.begin_trial(name, number, architecture, drawn)
        if number in FAILURES:
            stage, kind, reason = FAILURES[number]
            failure = Failure(key=architecture.key, stage=stage, kind=kind, reason=reason)
            store.fail_trial(name, number, failure)
            continue
        report = made_up(architecture, space, random.Random(number))
        values = [report.value(label) or 0.0 for label in space.file.objectives]
        excess = (report.value("memory_gib") or 0.0) - MAX_MEMORY_GIB
        store.finish_trial(name, number, report, values, excess <= 0, {"memory_gib": excess})
    store.set_status(name, "finished")


def made_up(architecture: Architecture, space: SearchSpace, luck: random.Random) -> Report:
    """Real counts and estimates; made-up quality that grows with the fraction of attention."""
    workload, target = space.plan.workloads[0], cluster(space.plan.target)
    pricing = Pricing.for_architecture(architecture, target, TargetTimings(), workload)
    caches = cache_bytes(architecture)
    counted = {
        "total_params": parameters(architecture).total,
        "active_params": parameters(architecture).active,
        "flops_per_token": flops_per_token(architecture, workload.decode_context),
        "weight_gib": weight_bytes(architecture) / GIB,
        "kv_bytes_per_token": caches.kv_bytes_per_token,
        "state_bytes_per_sequence": caches.state_bytes_per_sequence,
    }
    kinds = [body.block.kind for body in architecture.bodies]
    attention = sum(kind in ATTENTION_KINDS for kind in kinds) / architecture.num_layers
    experts = 0.03 * ("moe" in kinds)
    recall = min(0.99, 0.3 + 0.65 * attention**0.5 + luck.gauss(0, 0.05))
    bits = 3.05 - experts - 0.12 * (attention * (1 - attention)) ** 0.5 + luck.gauss(0, 0.02)
    proxy_ms = 4 + 6 * attention + luck.random()
    return Report(
        key=architecture.key,
        measurements=(
            *(
                Measurement(name=name, value=value, low=value, high=value, provenance="counted")
                for name, value in counted.items()
            ),
            *memory(architecture, workload),
            *pricing.latency(architecture, workload),
            _measured("bits_per_byte", bits, 0.008),
            _measured("recall", recall, 0.03),
            _measured("proxy_prefill_ms", proxy_ms, 0.2),
        ),
        facts={"corpus": "python-3.11", "seed": "0", "seeds": "3", "torch": "2.12.0"},
    )


def _measured(name: str, value: float, error: float) -> Measurement:
    return Measurement(
        name=name,
        value=value,
        low=value - error,
        high=value + error,
        provenance="measured",
        device="cpu x86_64, 1 thread(s)",
    )
