"""Several equal devices of one node: how an architecture is shared out among them, as an estimate.

    8xh200_sxm      eight of them

Tensor parallel splits heads, widths and experts, with one all-reduce after each sub-block; pipeline
stages split the layers, with micro-batches in flight. Every way that divides the architecture evenly
is estimated; the fastest decoding that fits is taken.
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

MOST_DEVICES = 64
LINK_SHARE = 0.75  # of a link's rate that a large transfer attains
HOP_US = 4.0  # of one transfer, however small
LINK_SPREAD = 0.5  # how far the time of a transfer may be off: no link was timed


@dataclass(frozen=True, kw_only=True)
class Cluster:
    count: int
    device: Device

    @property
    def name(self) -> str:
        return self.device.name if self.count == 1 else f"{self.count}x{self.device.name}"


def cluster(target: str) -> Cluster:
    """The devices that a target names. Raises InputError."""
    found = re.fullmatch(r"(\d+)x(\w+)", target)
    if found is None:
        return Cluster(count=1, device=device(target))
    count = int(found[1])
    if not 1 <= count <= MOST_DEVICES:
        raise InputError(f"a node has 1 to {MOST_DEVICES} devices, got {target!r}")
    return Cluster(count=count, device=device(found[2]))


@dataclass(frozen=True, kw_only=True)
class Split:
    """`tensor` devices share each layer, `stages` such groups follow each other."""

    tensor: int
    stages: int

    def __str__(self) -> str:
        parts = [f"tp{self.tensor}"] if self.tensor > 1 or self.stages == 1 else []
        return "·".join(parts + ([f"pp{self.stages}"] if self.stages > 1 else []))

    def shard(self, architecture: Architecture) -> Architecture:
        """The layers as each device has them. Raises ValueError where they do not divide."""
        if self.tensor == 1:
            return architecture
        if self.stages > architecture.num_layers:
            raise ValueError(f"{self.stages} stages need as many layers")
        blocks = {s: block.shard(self.tensor) for s, block in architecture.blocks.items()}
        table = math.ceil(architecture.vocab_size / self.tensor)
        return architecture.changed(blocks=blocks, vocab_size=table)

    def layer_calls(self, architecture: Architecture, point: Point) -> dict[str, Calls]:
        """What one device of each stage runs of a pass, the stages together, for one micro-batch."""
        placed = layer_calls(self.shard(architecture), self.micro(point))
        return placed if self.tensor == 1 else self._shared_out(architecture, placed)

    def _shared_out(
        self, architecture: Architecture, placed: Mapping[str, Calls]
    ) -> dict[str, Calls]:
        """A device's experts meet only the tokens that choose them."""
        chosen = {
            (block.d_expert, block.n_experts // self.tensor): block.top_k
            for block in architecture.blocks.values()
            if isinstance(block, MoE)
        }
        found: dict[str, Calls] = {}
        for place, part in placed.items():
            found[place] = Calls()
            for call, times in part.items():
                if isinstance(call, Experts):
                    top_k = chosen[call.d_expert, call.n_experts] / self.tensor
                    rows = max(1, round(call.rows * top_k / call.top_k))
                    call = replace(call, rows=rows)
                found[place][call] += times
        return found

    def micro(self, point: Point) -> Point:
        """The part of a batch that is in one stage while the others handle theirs."""
        return replace(point, batch=math.ceil(point.batch / self.stages))

    def transfers_s(self, architecture: Architecture, point: Point, of: Device) -> float:
        """Seconds of all transfers of a pass: all-reduces by rings, sends between stages."""
        rate = LINK_SHARE * of.link_gbps / 2 * 1e9  # both directions share the link's figure
        size = self.micro(point).rows * architecture.d_model * ACTIVATION_BYTES
        seconds = (self.stages - 1) * (HOP_US * 1e-6 + size / rate)
        if self.tensor > 1:
            around = 2 * (self.tensor - 1) / self.tensor * size / rate
            reduces = 1 + len(architecture.symbols)
            seconds += reduces * (around + 2 * HOP_US * 1e-6)
        return seconds


def splits(architecture: Architecture, count: int) -> Iterator[Split]:
    """Every way to use all devices that divides the architecture evenly."""
    for tensor in range(1, count + 1):
        split = Split(tensor=tensor, stages=count // tensor)
        if count % tensor or split.stages > architecture.num_layers:
            continue
        try:
            split.shard(architecture)
        except ValueError:
            continue
        yield split
