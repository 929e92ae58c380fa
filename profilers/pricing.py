"""Latency of an architecture on a target before it runs there: of its operator calls, or its blocks.

A pass is priced call by call with the cost model (cost/); a sub-block whose timing on the target is
at hand is priced with that. A decoding step with drafts verifies them all at once; a training step
is a forward pass, its backward pass and the optimizer's.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..search_space.accounting import mtp_module, parameters
from ..search_space.architecture import Architecture
from ..search_space.operators import AttentionDecode, Gemm, MLADecode, Point
from ..search_space.workload import Workload
from .cluster import LINK_SPREAD, Cluster, Split, splits
from .cost.model import Model
from .cost.model import Provenance as Known
from .cost.shipped import shipped
from .device import Device
from .lowering import EMBEDDING_AND_HEAD, Calls, head, joined
from .memory import GIB
from .report import Measurement, Provenance
from .timing.measure import Composition, Timed
from .timing.units import pieces

# Published training runs, backward over forward time: the median, and how far nine in ten are off.
BACKWARD, BACKWARD_SPREAD = 1.78, 0.15
OPTIMIZER_BYTES = (
    30  # a parameter: AdamW reads weight, gradient, master, moments; writes all but one
)
OPTIMIZER_RATE = 0.8  # of the bandwidth
TRANSFERS = "links"  # the place of what devices send each other


@dataclass(frozen=True, kw_only=True)
class TargetTimings:
    """What timings have taught: the cost model, timings of blocks on the target by piece and point,
    what a whole model takes beside them; the device as its driver reports it, where it was asked."""

    model: Model = field(default_factory=shipped)
    timed: Mapping[tuple[str, Point], Timed] = field(default_factory=dict)
    composition: Composition = field(default_factory=Composition)
    device: Device | None = None

    def target(self, named: Cluster) -> Cluster:
        """The target with the device's facts as they are."""
        return replace(named, device=self.device) if self.device else named


@dataclass(frozen=True, kw_only=True)
class Share:
    """Seconds that the calls of one operator family take in the sub-blocks of one symbol.

    `known` says what the cost model's figure stands on; "timed" where the blocks were.
    """

    place: str
    family: str
    seconds: float
    known: Known | str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one pass with a 90% interval, and where they go."""

    seconds: float
    low: float
    high: float
    provenance: Provenance
    shares: tuple[Share, ...]
    split: Split


def latency(
    architecture: Architecture,
    target: Cluster,
    workload: Workload,
    timings: TargetTimings | None = None,
) -> tuple[Measurement, ...]:
    """`prefill_ms`, `decode_ms` and `decode_tokens_per_s` of a workload, `train_tokens_per_s` where
    it has a training step, each with its 90% interval.

    Raises ValueError when the plan needs a number format that the device lacks, or the target's
    devices cannot share the architecture out; Uncountable for an encoder-decoder.
    """
    timings = timings or TargetTimings()
    target = timings.target(target)
    split = best_split(architecture, target, workload, timings)
    prefill = prefill_cost(architecture, target, workload, timings, split)
    decode = decode_cost(architecture, target, workload, timings, split)
    tokens = tokens_a_step(architecture, workload)
    where = target.name if target.count == 1 else f"{target.name} {split}"

    def told(name: str, of: Cost, scale: float, *, rate: bool = False) -> Measurement:
        value, low, high = (scale * seconds for seconds in (of.seconds, of.low, of.high))
        if rate:
            value, low, high = (scale / seconds for seconds in (of.seconds, of.high, of.low))
        return Measurement(
            name=name,
            workload=workload.name,
            value=value,
            low=low,
            high=high,
            provenance=of.provenance,
            device=where,
        )

    found = [
        told("prefill_ms", prefill, 1e3),
        told("decode_ms", decode, 1e3 / tokens),
        told("decode_tokens_per_s", decode, workload.decode_batch * tokens, rate=True),
    ]
    if workload.train_batch is not None and workload.train_tokens is not None:
        train = train_cost(architecture, target, workload, timings, split)
        rows = workload.train_batch * workload.train_tokens
        found.append(told("train_tokens_per_s", train, rows, rate=True))
    return tuple(found)


def points(workload: Workload) -> dict[str, Point]:
    """The two passes of a workload that serve: `prefill` and `decode`, without drafts."""
    tokens = workload.prefill_tokens
    return {
        "prefill": Point(batch=workload.prefill_batch, tokens=tokens, context=tokens),
        "decode": Point(batch=workload.decode_batch, tokens=1, context=workload.decode_context),
    }


def measured_peak(
    architecture: Architecture, target: Cluster, workload: Workload, timings: TargetTimings
) -> Measurement | None:
    """`peak_gib` as the allocator saw it, where the whole model ran both passes on the target."""
    key = f"whole:{architecture.key}"
    answers = [timings.timed.get((key, point)) for point in points(workload).values()]
    peaks = [answer.peak_bytes for answer in answers if answer and answer.peak_bytes]
    if target.count > 1 or len(peaks) < len(answers):
        return None
    value = max(peaks) / GIB
    return Measurement(
        name="peak_gib",
        workload=workload.name,
        value=value,
        low=value,
        high=value,
        provenance="measured",
        device=target.name,
    )


def best_split(
    architecture: Architecture, target: Cluster, workload: Workload, timings: TargetTimings
) -> Split:
    """The way to share the architecture out that decodes fastest."""
    found = list(splits(architecture, target.count))
    if not found:
        raise ValueError(
            f"{target.count} devices can neither share the layers' heads, widths and experts "
            f"evenly nor take {architecture.num_layers} layers in turn"
        )
    if len(found) == 1:
        return found[0]
    return min(
        found,
        key=lambda split: decode_cost(architecture, target, workload, timings, split).seconds,
    )


def prefill_cost(
    architecture: Architecture,
    target: Cluster,
    workload: Workload,
    timings: TargetTimings,
    split: Split,
) -> Cost:
    """One prefill of all prompts."""
    return _pass(architecture, target, points(workload)["prefill"], timings, split)


def decode_cost(
    architecture: Architecture,
    target: Cluster,
    workload: Workload,
    timings: TargetTimings,
    split: Split,
) -> Cost:
    """One decoding step; with drafts, the step that verifies them and the modules that draft."""
    batch, point = workload.decode_batch, points(workload)["decode"]
    drafts = _drafts(architecture, workload)
    if not drafts:
        return _pass(architecture, target, point, timings, split)
    many = replace(point, batch=batch * (1 + drafts))
    placed = {
        place: _read_once(part, 1 + drafts)
        for place, part in split.layer_calls(architecture, many).items()
    }
    small = split.micro(point)
    modules = replace(split, stages=1).layer_calls(mtp_module(architecture), small)
    modules[EMBEDDING_AND_HEAD][
        Gemm(m=small.batch, n=architecture.d_model, k=2 * architecture.d_model)
    ] += 1
    for call, times in joined(modules).items():
        placed.setdefault("mtp", Calls())[call] += drafts * times
    return _priced(architecture, target, many, placed, timings, split)


def _drafts(architecture: Architecture, workload: Workload) -> int:
    if architecture.mtp is None or workload.draft_acceptance is None:
        return 0
    return architecture.mtp.depth


def tokens_a_step(architecture: Architecture, workload: Workload) -> float:
    """Tokens of a sequence that one decoding step gives: 1, or with n drafts accepted with chance a
    each, (1 - a^(n + 1)) / (1 - a) (Leviathan et al., ICML 2023)."""
    drafts, chance = _drafts(architecture, workload), workload.draft_acceptance
    return sum((chance or 0.0) ** n for n in range(drafts + 1)) if drafts else 1.0


def _read_once(part: Calls, tokens: int) -> Calls:
    """Tokens of one sequence read its keys and values together, as more heads would."""
    found = Calls()
    for call, times in part.items():
        if isinstance(call, AttentionDecode | MLADecode):
            batch = max(1, call.batch // tokens)
            call = replace(call, batch=batch, heads=call.heads * tokens)
        found[call] += times
    return found


def train_cost(
    architecture: Architecture,
    target: Cluster,
    workload: Workload,
    timings: TargetTimings,
    split: Split,
) -> Cost:
    """Forward, backward and optimizer of one step, nothing recomputed."""
    assert workload.train_batch is not None
    assert workload.train_tokens is not None
    tokens = workload.train_tokens
    point = Point(batch=workload.train_batch, tokens=tokens, context=tokens)
    placed = split.layer_calls(architecture, point)
    placed[EMBEDDING_AND_HEAD] -= Calls([head(split.shard(architecture), split.micro(point).batch)])
    placed[EMBEDDING_AND_HEAD][head(split.shard(architecture), split.micro(point).rows)] += 1
    forward = _priced(architecture, target, point, placed, timings, split)
    weights = parameters(architecture, mtp=True).total / target.count
    rate = OPTIMIZER_RATE * target.device.memory_gbps * 1e9
    optimizer = weights * OPTIMIZER_BYTES / rate
    both = 1 + BACKWARD
    seconds = both * forward.seconds + optimizer
    half = math.hypot(
        both * (forward.high - forward.low) / 2, BACKWARD_SPREAD * BACKWARD * forward.seconds
    )
    shares = [replace(share, seconds=both * share.seconds) for share in forward.shares]
    shares.append(Share(place="optimizer", family="rows", seconds=optimizer, known="stand_in"))
    return replace(
        forward, seconds=seconds, low=seconds - half, high=seconds + half, shares=tuple(shares)
    )


def _pass(
    architecture: Architecture, target: Cluster, point: Point, timings: TargetTimings, split: Split
) -> Cost:
    if target.count == 1 and (whole := timings.timed.get((f"whole:{architecture.key}", point))):
        return _measured(whole, split)
    timed = _timed(architecture, point, timings) if target.count == 1 else {}
    placed = split.layer_calls(architecture, point)
    priced = {place: part for place, part in placed.items() if place not in timed}
    cost = _priced(architecture, target, point, priced, timings, split) if priced else None
    if not timed:
        assert cost is not None, "an architecture has a place"
        return cost
    return _with_timed(architecture, timed, cost, timings.composition, split)


def _measured(whole: Timed, split: Split) -> Cost:
    share = Share(place="whole", family="model", seconds=whole.seconds, known="timed")
    return Cost(
        seconds=whole.seconds,
        low=whole.low,
        high=whole.high,
        provenance="measured",
        shares=(share,),
        split=split,
    )


def _timed(
    architecture: Architecture, point: Point, timings: TargetTimings
) -> dict[str, tuple[float, float]]:
    """(seconds, half-width) of each place all of whose pieces were timed at the point."""
    known = {piece: answer for (piece, at), answer in timings.timed.items() if at == point}
    found: dict[str, tuple[float, float]] = {}
    missing = set()
    for piece in pieces(architecture) if known else ():
        answer = known.get(piece.key)
        if answer is None:
            missing.add(piece.symbol)
            continue
        seconds, half = found.get(piece.symbol, (0.0, 0.0))
        wide = piece.times * (answer.high - answer.low) / 2
        found[piece.symbol] = seconds + piece.times * answer.seconds, half + wide
    return {place: sums for place, sums in found.items() if place not in missing}


def _with_timed(
    architecture: Architecture,
    timed: Mapping[str, tuple[float, float]],
    rest: Cost | None,
    composition: Composition,
    split: Split,
) -> Cost:
    """Timed places and estimated ones together; the clock's own errors add up linearly."""
    layers = architecture.num_layers * composition.layer_s
    between = composition.constant_s + layers
    measured = sum(seconds for seconds, _ in timed.values()) + between
    seconds = measured + (rest.seconds if rest else 0.0)
    clock = sum(half for _, half in timed.values())
    unsure = (rest.high - rest.low) / 2 if rest else 0.0
    half = math.hypot(clock, composition.spread * measured, unsure)
    shares = [
        Share(place=place, family="block", seconds=spent, known="timed")
        for place, (spent, _) in timed.items()
    ]
    if between:
        shares.append(Share(place="between", family="layers", seconds=between, known="timed"))
    return Cost(
        seconds=seconds,
        low=seconds - half,
        high=seconds + half,
        provenance="estimated" if rest else "composed",
        shares=(*shares, *(rest.shares if rest else ())),
        split=split,
    )


def _priced(
    architecture: Architecture,
    target: Cluster,
    point: Point,
    placed: Mapping[str, Calls],
    timings: TargetTimings,
    split: Split,
) -> Cost:
    """The calls by the cost model, and what devices send each other meanwhile."""
    every = joined(placed)
    if target.device.fp8 is None and any(call.format == "fp8" for call in every):
        raise ValueError(f"{target.device.name} has no FP8 units, the precision plan needs them")
    total = timings.model.total(every, target.device)
    sent = split.transfers_s(architecture, point, target.device)
    seconds = total.seconds + sent
    low = math.hypot(total.seconds - total.low, LINK_SPREAD * sent)
    high = math.hypot(total.high - total.seconds, LINK_SPREAD * sent)
    shares = list(_shares(placed, timings.model, target.device))
    if sent:
        shares.append(Share(place=TRANSFERS, family="transfer", seconds=sent, known="stand_in"))
    return Cost(
        seconds=seconds,
        low=seconds - low,
        high=seconds + high,
        provenance="estimated",
        shares=tuple(shares),
        split=split,
    )


def _shares(placed: Mapping[str, Calls], model: Model, device: Device) -> Iterable[Share]:
    for place, part in placed.items():
        times = model.times(list(part), device)
        by_family: dict[tuple[str, Known], float] = {}
        each = zip(part.items(), times.seconds.tolist(), times.provenance, strict=True)
        for (call, count), seconds, known in each:
            key = call.family, known
            by_family[key] = by_family.get(key, 0.0) + count * seconds
        for (family, known), seconds in by_family.items():
            yield Share(place=place, family=family, seconds=seconds, known=known)
