"""Latency of an architecture on a target before it runs there, with intervals and provenance.

    pricing = Pricing.for_architecture(architecture, cluster("h200_sxm"), TargetTimings(), workload)
    pricing.latency(architecture, workload)                 # prefill_ms, decode_ms, …
    pricing.decode(architecture, workload).terms            # where the time goes

The operator calls of a pass are priced with the cost model (cost/); a layer group whose timing
units were all timed on the target takes their timings instead. A decoding step with drafts verifies
all of them at once; a training step is a forward pass, its backward pass and the optimizer.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from ..search_space.accounting import mtp_module, parameters
from ..search_space.architecture import Architecture
from ..search_space.operators import AttentionDecode, Gemm, MLADecode, Point
from ..search_space.workload import Workload
from .cluster import LINK_HALF_WIDTH, Cluster, Split, splits
from .cost.model import Model
from .cost.model import Provenance as CallProvenance
from .cost.shipped import shipped
from .device import Device
from .lowering import EMBEDDING_AND_HEAD, Calls, head, joined
from .memory import GIB
from .report import Measurement, Provenance
from .timing.measure import Composition, Timed
from .timing.units import timing_units

# Backward over forward time in published training runs: the median, and the relative half-width
# that covers nine in ten of them.
BACKWARD, BACKWARD_HALF_WIDTH = 1.78, 0.15
# Bytes per parameter: AdamW reads weight, gradient, master and moments, and writes all but one.
OPTIMIZER_BYTES = 30
OPTIMIZER_EFFICIENCY = 0.8  # fraction of the memory bandwidth
TRANSFERS = "links"  # the layer group of transfers between devices


@dataclass(frozen=True, kw_only=True)
class TargetTimings:
    """Inputs of an estimate beside the architecture: cost model and timings of a target.

    `model` is the cost model, calibrated where the target was; `timed` has the timings of units
    and whole models by unit key and point; `composition` corrects a sum of units; `device` is the
    target's device with the facts that its driver reports, None where it was not calibrated.
    """

    model: Model = field(default_factory=shipped)
    timed: Mapping[tuple[str, Point], Timed] = field(default_factory=dict)
    composition: Composition = field(default_factory=Composition)
    device: Device | None = None

    def target(self, named: Cluster) -> Cluster:
        """The target with the facts that its driver reported, where they are known."""
        return replace(named, device=self.device) if self.device else named


@dataclass(frozen=True, kw_only=True)
class CostTerm:
    """Seconds that the calls of one operator family take in one layer group.

    `provenance` is that of the cost model's estimate; "timed" where the group itself was timed.
    """

    group: str
    family: str
    seconds: float
    provenance: CallProvenance | Literal["timed"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one pass with a 90% interval; its terms add up to `seconds`."""

    seconds: float
    low: float
    high: float
    provenance: Provenance
    terms: tuple[CostTerm, ...]
    split: Split


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """Estimates of passes on one target under one split of the architecture.

    Every method raises ValueError where the precision plan needs a number format that the device
    lacks, and Uncountable (a ValueError) for an encoder-decoder.
    """

    target: Cluster
    timings: TargetTimings
    split: Split

    @classmethod
    def for_architecture(
        cls,
        architecture: Architecture,
        target: Cluster,
        timings: TargetTimings,
        workload: Workload,
    ) -> Self:
        """The pricing under the split that decodes the workload fastest.

        Raises ValueError where no split uses all devices of the target evenly.
        """
        target = timings.target(target)
        found = [
            cls(target=target, timings=timings, split=split)
            for split in splits(architecture, target.count)
        ]
        if not found:
            raise ValueError(
                f"{target.count} devices can neither split the heads, widths and experts of the "
                f"layers evenly nor be pipeline stages of {architecture.num_layers} layers"
            )
        if len(found) == 1:
            return found[0]
        return min(found, key=lambda pricing: pricing.decode(architecture, workload).seconds)

    def latency(self, architecture: Architecture, workload: Workload) -> tuple[Measurement, ...]:
        """`prefill_ms`, `decode_ms` and `decode_tokens_per_s` of a workload, each with its 90%
        interval, and `train_tokens_per_s` where the workload has a training step."""
        prefill, decode = self.prefill(architecture, workload), self.decode(architecture, workload)
        tokens = tokens_per_step(architecture, workload)
        rows = workload.decode_batch * tokens
        found = [
            self._time("prefill_ms", prefill, 1e3, workload),
            self._time("decode_ms", decode, 1e3 / tokens, workload),
            self._rate("decode_tokens_per_s", decode, rows, workload),
        ]
        if workload.train_batch is not None and workload.train_tokens is not None:
            rows = workload.train_batch * workload.train_tokens
            train = self.train(architecture, workload)
            found.append(self._rate("train_tokens_per_s", train, rows, workload))
        return tuple(found)

    def _time(self, name: str, cost: Cost, scale: float, workload: Workload) -> Measurement:
        value, low, high = (scale * seconds for seconds in (cost.seconds, cost.low, cost.high))
        return self._measurement(name, value, low, high, cost.provenance, workload)

    def _rate(self, name: str, cost: Cost, count: float, workload: Workload) -> Measurement:
        value, low, high = (count / seconds for seconds in (cost.seconds, cost.high, cost.low))
        return self._measurement(name, value, low, high, cost.provenance, workload)

    def _measurement(
        self,
        name: str,
        value: float,
        low: float,
        high: float,
        provenance: Provenance,
        workload: Workload,
    ) -> Measurement:
        several = self.target.count > 1
        return Measurement(
            name=name,
            workload=workload.name,
            value=value,
            low=low,
            high=high,
            provenance=provenance,
            device=f"{self.target.name} {self.split}" if several else self.target.name,
        )

    def measured_peak(self, architecture: Architecture, workload: Workload) -> Measurement | None:
        """`peak_gib` as the allocator reported it; None unless the whole model ran both serving
        passes of the workload on the target."""
        key = f"whole:{architecture.key}"
        runs = [self.timings.timed.get((key, point)) for point in points(workload).values()]
        peaks = [run.peak_bytes for run in runs if run and run.peak_bytes]
        if self.target.count > 1 or len(peaks) < len(runs):
            return None
        peak = max(peaks) / GIB
        return self._measurement("peak_gib", peak, peak, peak, "measured", workload)

    def prefill(self, architecture: Architecture, workload: Workload) -> Cost:
        """One prefill of all prompts of the workload."""
        return self._pass(architecture, points(workload)["prefill"])

    def decode(self, architecture: Architecture, workload: Workload) -> Cost:
        """One decoding step; with drafts, their modules and the step that verifies them."""
        point, drafts = points(workload)["decode"], _drafts(architecture, workload)
        if not drafts:
            return self._pass(architecture, point)
        verified = replace(point, batch=workload.decode_batch * (1 + drafts))
        by_group = {
            group: _shared_reads(group_calls, 1 + drafts)
            for group, group_calls in self.split.layer_calls(architecture, verified).items()
        }
        small = self.split.micro_batch(point)
        modules = replace(self.split, stages=1).layer_calls(mtp_module(architecture), small)
        modules[EMBEDDING_AND_HEAD][
            Gemm(m=small.batch, n=architecture.d_model, k=2 * architecture.d_model)
        ] += 1
        for call, times in joined(modules).items():
            by_group.setdefault("mtp", Calls())[call] += drafts * times
        return self._estimate(architecture, verified, by_group)

    def train(self, architecture: Architecture, workload: Workload) -> Cost:
        """Forward, backward and optimizer of one step, nothing recomputed.

        The workload must have `train_batch` and `train_tokens`.
        """
        assert workload.train_batch is not None
        assert workload.train_tokens is not None
        tokens = workload.train_tokens
        point = Point(batch=workload.train_batch, tokens=tokens, context=tokens)
        by_group = self.split.layer_calls(architecture, point)
        shard, micro_batch = self.split.shard(architecture), self.split.micro_batch(point)
        by_group[EMBEDDING_AND_HEAD] -= Calls([head(shard, micro_batch.batch)])
        by_group[EMBEDDING_AND_HEAD][head(shard, micro_batch.rows)] += 1
        forward = self._estimate(architecture, point, by_group)
        weights = parameters(architecture, mtp=True).total / self.target.count
        rate = OPTIMIZER_EFFICIENCY * self.target.device.memory_gbps * 1e9
        optimizer = weights * OPTIMIZER_BYTES / rate
        both = 1 + BACKWARD
        seconds = both * forward.seconds + optimizer
        half_width = math.hypot(
            both * (forward.high - forward.low) / 2,
            BACKWARD_HALF_WIDTH * BACKWARD * forward.seconds,
        )
        return replace(
            forward,
            seconds=seconds,
            low=seconds - half_width,
            high=seconds + half_width,
            terms=(
                *(replace(term, seconds=both * term.seconds) for term in forward.terms),
                CostTerm(
                    group="optimizer", family="rows", seconds=optimizer, provenance="stand_in"
                ),
            ),
        )

    def _pass(self, architecture: Architecture, point: Point) -> Cost:
        """A forward pass by the best source there is: whole model, timing units, cost model."""
        alone = self.target.count == 1
        if alone and (whole := self.timings.timed.get((f"whole:{architecture.key}", point))):
            return self._measured(whole)
        timed = _timed_groups(architecture, point, self.timings) if alone else {}
        by_group = self.split.layer_calls(architecture, point)
        rest = {group: found for group, found in by_group.items() if group not in timed}
        estimated = self._estimate(architecture, point, rest) if rest else None
        if not timed:
            assert estimated is not None, "an architecture has a layer group"
            return estimated
        return self._composed(architecture, timed, estimated)

    def _measured(self, whole: Timed) -> Cost:
        term = CostTerm(group="whole", family="model", seconds=whole.seconds, provenance="timed")
        return Cost(
            seconds=whole.seconds,
            low=whole.low,
            high=whole.high,
            provenance="measured",
            terms=(term,),
            split=self.split,
        )

    def _composed(
        self,
        architecture: Architecture,
        timed: Mapping[str, tuple[float, float]],
        rest: Cost | None,
    ) -> Cost:
        """Timed layer groups and estimated ones together.

        Half-widths of timings add up linearly, since an error of the clock is common to all of
        them; those of the timings, the composition and the estimate in quadrature.
        """
        composition = self.timings.composition
        layers = architecture.num_layers * composition.layer_s
        between = composition.constant_s + layers
        measured = sum(seconds for seconds, _ in timed.values()) + between
        seconds = measured + (rest.seconds if rest else 0.0)
        clock = sum(half_width for _, half_width in timed.values())
        estimate = (rest.high - rest.low) / 2 if rest else 0.0
        half_width = math.hypot(clock, composition.half_width * measured, estimate)
        terms = [
            CostTerm(group=group, family="block", seconds=spent, provenance="timed")
            for group, (spent, _) in timed.items()
        ]
        if between:
            terms.append(
                CostTerm(group="between", family="layers", seconds=between, provenance="timed")
            )
        return Cost(
            seconds=seconds,
            low=seconds - half_width,
            high=seconds + half_width,
            provenance="estimated" if rest else "composed",
            terms=(*terms, *(rest.terms if rest else ())),
            split=self.split,
        )

    def _estimate(
        self, architecture: Architecture, point: Point, by_group: Mapping[str, Calls]
    ) -> Cost:
        """The calls by the cost model, and the transfers between devices."""
        every, device = joined(by_group), self.target.device
        if device.fp8 is None and any(call.format == "fp8" for call in every):
            raise ValueError(f"{device.name} has no FP8 units, the precision plan needs them")
        total = self.timings.model.total(every, device)
        transfers = self.split.transfers_s(architecture, point, device)
        seconds = total.seconds + transfers
        below = math.hypot(total.seconds - total.low, LINK_HALF_WIDTH * transfers)
        above = math.hypot(total.high - total.seconds, LINK_HALF_WIDTH * transfers)
        terms = list(_terms(by_group, self.timings.model, device))
        if transfers:
            terms.append(
                CostTerm(
                    group=TRANSFERS, family="transfer", seconds=transfers, provenance="stand_in"
                )
            )
        return Cost(
            seconds=seconds,
            low=seconds - below,
            high=seconds + above,
            provenance="estimated",
            terms=tuple(terms),
            split=self.split,
        )


def points(workload: Workload) -> dict[str, Point]:
    """The two serving passes of a workload, `prefill` and `decode`, without drafts."""
    tokens = workload.prefill_tokens
    return {
        "prefill": Point(batch=workload.prefill_batch, tokens=tokens, context=tokens),
        "decode": Point(batch=workload.decode_batch, tokens=1, context=workload.decode_context),
    }


def tokens_per_step(architecture: Architecture, workload: Workload) -> float:
    """Expected tokens per sequence of one decoding step.

    1 without drafts; with n drafts, each accepted with probability a, (1 - a^(n + 1)) / (1 - a)
    (Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023, eq. 1).
    """
    drafts, acceptance = _drafts(architecture, workload), workload.draft_acceptance
    return sum((acceptance or 0.0) ** n for n in range(drafts + 1)) if drafts else 1.0


def _drafts(architecture: Architecture, workload: Workload) -> int:
    if architecture.mtp is None or workload.draft_acceptance is None:
        return 0
    return architecture.mtp.depth


def _shared_reads(calls: Calls, tokens: int) -> Calls:
    """The calls where the tokens of a sequence read its cache once, as more heads would."""
    found = Calls()
    for call, times in calls.items():
        if isinstance(call, AttentionDecode | MLADecode):
            batch = max(1, call.batch // tokens)
            call = replace(call, batch=batch, heads=call.heads * tokens)
        found[call] += times
    return found


def _timed_groups(
    architecture: Architecture, point: Point, timings: TargetTimings
) -> dict[str, tuple[float, float]]:
    """(seconds, half-width) of each layer group all of whose units were timed at the point."""
    known = {unit: timed for (unit, at), timed in timings.timed.items() if at == point}
    found: dict[str, tuple[float, float]] = {}
    missing = set()
    for unit in timing_units(architecture) if known else ():
        timed = known.get(unit.key)
        if timed is None:
            missing.add(unit.group)
            continue
        seconds, half_width = found.get(unit.group, (0.0, 0.0))
        wide = unit.count * (timed.high - timed.low) / 2
        found[unit.group] = seconds + unit.count * timed.seconds, half_width + wide
    return {group: sums for group, sums in found.items() if group not in missing}


def _terms(by_group: Mapping[str, Calls], cost_model: Model, device: Device) -> Iterable[CostTerm]:
    for group, calls in by_group.items():
        times = cost_model.times(list(calls), device)
        by_family: dict[tuple[str, CallProvenance], float] = {}
        each = zip(calls.items(), times.seconds.tolist(), times.provenance, strict=True)
        for (call, count), seconds, provenance in each:
            key = call.family, provenance
            by_family[key] = by_family.get(key, 0.0) + count * seconds
        for (family, provenance), seconds in by_family.items():
            yield CostTerm(group=group, family=family, seconds=seconds, provenance=provenance)
