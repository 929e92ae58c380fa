"""A Ray cluster of two nodes on this machine, one of which dies under its trials."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from archfront.orchestrator import workers
from archfront.orchestrator.search import Run, create_study, run_study
from archfront.orchestrator.store import open_store
from archfront.profilers.report import Measurement, Report
from archfront.search_space.check import check_space
from archfront.search_space.document import parse_document

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning"),
]
TRIALS = 8


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in (("period_ms", "1000"), ("failure_threshold", "3"), ("timeout_ms", "1000")):
        monkeypatch.setenv(f"RAY_health_check_{name}", value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


class Watch:
    """A view that kills a node once two trials are complete."""

    def __init__(self, cluster: Cluster, node: Any) -> None:
        self.killed = threading.Event()
        self.cluster, self.node = cluster, node

    def show(self, state: Any) -> None:
        if state.complete >= 2 and not self.killed.is_set():
            self.killed.set()
            threading.Thread(target=self.cluster.remove_node, args=(self.node, False)).start()

    def close(self) -> None:
        """Nothing to close."""


def test_a_lost_node_costs_no_trial(cluster: Cluster, tmp_path: Path, small_space: str) -> None:
    second = cluster.add_node(num_cpus=1)
    view = Watch(cluster, second)

    def trainable(config: dict[str, Any]) -> None:
        key = json.loads(config[workers.TASK])["key"]

        def profile(*_: Any) -> Iterator[Report]:
            time.sleep(1.5)
            values = {name: int(key[i : i + 3], 16) / 4096 for i, name in enumerate(NAMES)}
            measurements = [
                Measurement(name=n, value=v, provenance="counted") for n, v in values.items()
            ]
            yield Report(key=key, measurements=tuple(measurements))

        workers.attempt(config, profile)

    space = check_space(parse_document(small_space, source="small.yaml"))
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        study = create_study(store, space, name="s", target="h200_sxm", trials=TRIALS, seed=0)
        run = Run(address=cluster.address, workers=2)
        ended = run_study(store, study, space, run, view, trainable=trainable)
    assert view.killed.is_set()
    assert ended.status == "finished"
    assert dict(ended.counts) | {"rejected": 0} == {"complete": TRIALS, "rejected": 0}


NAMES = ("bits_per_byte", "recall", "decode_ms")
