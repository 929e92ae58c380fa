"""Several equal devices of one node, and the ways to split an architecture over them.

    8xh200_sxm      eight H200

Tensor parallelism splits heads, widths and experts and all-reduces after each sub-block; pipeline
parallelism splits the layers into stages with micro-batches in flight. Every combination that
divides the architecture evenly is estimated, and the one that decodes fastest is used.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..search_space.architecture import Architecture
from ..search_space.blocks.moe import MoE
from ..search_space.document import InputError
from ..search_space.operators import ACTIVATION_BYTES, Experts, Point
from .device import Device, device
from .lowering import Calls, layer_calls

MAX_DEVICES = 64
LINK_EFFICIENCY = 0.75  # fraction of a link's bandwidth that a large transfer attains
HOP_US = 4.0  # latency of one transfer, however small
LINK_HALF_WIDTH = 0.5  # relative half-width of a transfer's time: a guess, no link was timed


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """`count` devices of one kind in one node."""

    count: int
    device: Device

    @property
    def name(self) -> str:
        """The target as `cluster` parses it."""
        return self.device.name if self.count == 1 else f"{self.count}x{self.device.name}"


def cluster(target: str) -> Cluster:
    """Parse a target: a device name ("h200_sxm") or a count of one ("8xh200_sxm").

    Raises InputError for an unknown device or a count outside 1 to 64.
    """
    found = re.fullmatch(r"(\d+)x(\w+)", target)
    if found is None:
        return Cluster(count=1, device=device(target))
    count = int(found[1])
    if not 1 <= count <= MAX_DEVICES:
        raise InputError(f"a node has 1 to {MAX_DEVICES} devices, got {target!r}")
    return Cluster(count=count, device=device(found[2]))


@dataclass(frozen=True, kw_only=True)
class Split:
    """Tensor parallelism of degree `tensor` inside each of `stages` pipeline stages."""

    tensor: int
    stages: int

    def __str__(self) -> str:
        parts = [f"tp{self.tensor}"] if self.tensor > 1 or self.stages == 1 else []
        return "·".join(parts + ([f"pp{self.stages}"] if self.stages > 1 else []))

    def shard(self, architecture: Architecture) -> Architecture:
        """The architecture as each device of a stage holds it.

        Raises ValueError where heads, widths or experts do not divide by `tensor`, or there are
        fewer layers than stages.
        """
        if self.tensor == 1:
            return architecture
        if self.stages > architecture.num_layers:
            raise ValueError(
                f"num_layers must be at least the number of stages, "
                f"got num_layers={architecture.num_layers}, stages={self.stages}"
            )
        blocks = {s: block.shard(self.tensor) for s, block in architecture.blocks.items()}
        vocab_size = math.ceil(architecture.vocab_size / self.tensor)
        return architecture.changed(blocks=blocks, vocab_size=vocab_size)

    def layer_calls(self, architecture: Architecture, point: Point) -> dict[str, Calls]:
        """Calls by layer group of one device for one micro-batch, summed over the stages."""
        by_group = layer_calls(self.shard(architecture), self.micro_batch(point))
        return by_group if self.tensor == 1 else self._routed(architecture, by_group)

    def _routed(
        self, architecture: Architecture, by_group: Mapping[str, Calls]
    ) -> dict[str, Calls]:
        """The calls with the experts of a device on only the tokens that are routed to them."""
        top_ks = {
            (block.d_expert, block.n_experts // self.tensor): block.top_k
            for block in architecture.blocks.values()
            if isinstance(block, MoE)
        }
        found: dict[str, Calls] = {}
        for group, group_calls in by_group.items():
            found[group] = Calls()
            for call, times in group_calls.items():
                if isinstance(call, Experts):
                    top_k = top_ks[call.d_expert, call.n_experts] / self.tensor
                    rows = max(1, round(call.rows * top_k / call.top_k))
                    call = replace(call, rows=rows)
                found[group][call] += times
        return found

    def micro_batch(self, point: Point) -> Point:
        """The point of one micro-batch: the batch divided by the number of stages."""
        return replace(point, batch=math.ceil(point.batch / self.stages))

    def transfers_s(self, architecture: Architecture, point: Point, device: Device) -> float:
        """Seconds that the transfers of a pass take.

        Tensor parallelism has one ring all-reduce, which moves 2 (n - 1) / n of the activations
        over each link (Patarasuk and Yuan, 2009), after each sub-block and after the embedding;
        pipeline parallelism sends the activations of a micro-batch between stages.
        """
        rate = LINK_EFFICIENCY * device.link_gbps / 2 * 1e9  # link_gbps counts both directions
        size = self.micro_batch(point).rows * architecture.d_model * ACTIVATION_BYTES
        seconds = (self.stages - 1) * (HOP_US * 1e-6 + size / rate)
        if self.tensor > 1:
            ring = 2 * (self.tensor - 1) / self.tensor * size / rate
            reduces = 1 + len(architecture.symbols)
            seconds += reduces * (ring + 2 * HOP_US * 1e-6)
        return seconds


def splits(architecture: Architecture, count: int) -> Iterator[Split]:
    """Every split that uses all `count` devices and divides the architecture evenly."""
    for tensor in range(1, count + 1):
        split = Split(tensor=tensor, stages=count // tensor)
        if count % tensor or split.stages > architecture.num_layers:
            continue
        try:
            split.shard(architecture)
        except ValueError:
            continue
        yield split
