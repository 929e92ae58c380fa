"""A model that starts from the weights of another one, of whatever shape.

    told = inherit(child, parent)

The same kind of block in other sizes takes the leading heads, channels and columns; a mixer of
another kind takes queries, keys, values and output from the projections that play that part (as in
arXiv 2408.15237); a mixture of experts is upcycled from a dense feed-forward, copied (arXiv
2212.05055) or split among its experts (arXiv 2410.07524). What has no counterpart stays fresh.
"""

# H heads, W width of a head, E experts, F width of a feed-forward, D model width

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..search_space.architecture import Body
from ..search_space.blocks.block import Block
from ..search_space.blocks.feed_forward import FeedForward
from ..search_space.blocks.moe import MoE
from ..search_space.pattern import is_feed_forward
from .heads import stacked
from .model import HybridLM

How = Literal["whole", "part", "converted", "fresh"]
Weights = Mapping[str, Tensor]
CONVERTIBLE = ("q", "k", "v", "z", "o")


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """What a parameter started from: its namesake of equal shape, a part of it, a tensor that plays
    its part in another kind of block, or nothing."""

    parameter: str
    how: How
    source: str | None = None


@torch.no_grad()
def inherit(child: HybridLM, parent: HybridLM) -> tuple[Inherited, ...]:
    """Fill `child` in place from `parent` and say of each parameter how.

    A sub-block takes after the nearest in relative depth: a mixer after a mixer, of its own kind if
    there is one, a feed-forward after a feed-forward. MTP modules stay fresh.
    """
    mine, theirs = dict(child.named_parameters()), dict(parent.named_parameters())
    told: dict[str, Inherited] = {}
    for name in mine:
        if not name.startswith(("blocks.", "mtp.")):
            told[name] = _from_namesake(mine, theirs, name, name)
    for body, source in _pairs(child, parent):
        told |= _inherit_body(mine, theirs, body, source)
    return tuple(told.get(name, Inherited(parameter=name, how="fresh")) for name in mine)


def summary(told: tuple[Inherited, ...]) -> dict[How, int]:
    """How many parameter tensors started in which way."""
    return dict(Counter(inherited.how for inherited in told))


def _pairs(child: HybridLM, parent: HybridLM) -> list[tuple[Body, Body]]:
    found = []
    for feeds in (False, True):
        mine, theirs = (
            [body for body in model.architecture.bodies if is_feed_forward(body.symbol) == feeds]
            for model in (child, parent)
        )
        for place, body in enumerate(mine if theirs else ()):
            depth = place / max(1, len(mine) - 1) * (len(theirs) - 1)
            alike = [i for i, b in enumerate(theirs) if b.block.kind == body.block.kind]
            nearest = min(alike or range(len(theirs)), key=lambda i: abs(i - depth))
            found.append((body, theirs[nearest]))
    return found


def _inherit_body(mine: Weights, theirs: Weights, body: Body, source: Body) -> dict[str, Inherited]:
    """A body, and the norms around it where it is a sub-block of its own."""
    told = {}
    to, of = _prefix(body), _prefix(source)
    inner = {n.removeprefix(to): p for n, p in mine.items() if n.startswith(to)}
    inner_source = {n.removeprefix(of): p for n, p in theirs.items() if n.startswith(of)}
    a, b = body.block, source.block
    if isinstance(a, MoE) and isinstance(b, FeedForward):
        found = _upcycled(a, b, inner, inner_source)
    elif a.kind == b.kind:
        found = _resized(a, b, inner, inner_source)
    else:
        found = _converted(a, b, inner, inner_source)
    for name, (how, from_name) in found.items():
        told[to + name] = Inherited(parameter=to + name, how=how, source=of + from_name)
    if (body.branch is None) == (source.branch is None):
        around, of_around = (prefix.removesuffix("body.") for prefix in (to, of))
        if body.branch == 0:  # it stands for the whole group
            around, of_around = f"blocks.{body.sub_block}.", f"blocks.{source.sub_block}."
        for name in mine:
            rest = name.removeprefix(around)
            if rest != name and "body." not in rest:
                told[name] = _from_namesake(mine, theirs, name, of_around + rest)
    return told


def _prefix(body: Body) -> str:
    branch = "" if body.branch is None else f"branches.{body.branch}."
    return f"blocks.{body.sub_block}.{branch}body."


def _from_namesake(mine: Weights, theirs: Weights, name: str, source: str) -> Inherited:
    if source not in theirs or theirs[source].ndim != mine[name].ndim:
        return Inherited(parameter=name, how="fresh")
    return Inherited(parameter=name, how=_overlay(mine[name], theirs[source]), source=source)


def _overlay(mine: Tensor, theirs: Tensor) -> How:
    """Copy the leading part that both have."""
    common = tuple(slice(min(a, b)) for a, b in zip(mine.shape, theirs.shape, strict=True))
    mine[common] = theirs[common].to(mine)
    return "whole" if mine.shape == theirs.shape else "part"


Found = dict[str, tuple[How, str]]  # by parameter: how, and from which


def _resized(block: Block, source: Block, mine: Weights, theirs: Weights) -> Found:
    found: Found = {}
    own, of_source = stacked(block), stacked(source)
    for name, weight in mine.items():
        if name not in theirs or theirs[name].ndim != weight.ndim:
            continue
        stack = own.get(_stem(name))
        if stack is None or (stack.axis == 1 and weight.ndim == 1):
            found[name] = _overlay(weight, theirs[name]), name
            continue
        for part, index_HW in stack.parts.items():
            from_HW = of_source[_stem(name)].parts.get(part)
            if from_HW is not None:
                leading = torch.arange(min(len(index_HW), len(from_HW)))
                _move(weight, stack.axis, index_HW[leading], theirs[name], from_HW[leading])
        found[name] = "whole" if weight.shape == theirs[name].shape else "part", name
    return found


def _converted(block: Block, source: Block, mine: Weights, theirs: Weights) -> Found:
    """Heads are spread over those of the source, so that grouped keys stay with their queries."""
    plays: dict[str, tuple[str, int, Tensor]] = {}
    for stem, stack in stacked(source).items():
        name = _name(stem, theirs)
        if name is not None:
            plays |= {part: (name, stack.axis, index) for part, index in stack.parts.items()}
    if "k" in plays and "v" not in plays:  # attention with k_eq_v
        plays["v"] = plays["k"]
    found: Found = {}
    for stem, stack in stacked(block).items():
        name = _name(stem, mine)
        for part, index_HW in stack.parts.items():
            if name is None or part not in CONVERTIBLE or part not in plays:
                continue
            of_name, axis, from_HW = plays[part]
            spread = torch.arange(len(index_HW)) * len(from_HW) // len(index_HW)
            if axis == stack.axis:
                _move(mine[name], axis, index_HW, theirs[of_name], from_HW[spread])
                found[name] = "converted", of_name
    return found


def _move(mine: Tensor, axis: int, to_HW: Tensor, theirs: Tensor, from_HW: Tensor) -> None:
    """Copy heads onto heads: of a head and of the other axis the leading part that both have."""
    W = min(to_HW.shape[1], from_HW.shape[1])
    to, of = to_HW[:, :W].flatten(), from_HW[:, :W].flatten()
    taken = theirs.index_select(axis, of.to(theirs.device)).to(mine)
    grown = mine.index_select(axis, to.to(mine.device))
    _overlay(grown, taken)
    mine.index_copy_(axis, to.to(mine.device), grown)


def _upcycled(block: MoE, source: FeedForward, mine: Weights, theirs: Weights) -> Found:
    """Every expert a copy of the dense feed-forward; or a slice of it where slices fit.

    Split in m, the experts of a virtual group hold the m slices and share a row of the router, so
    that a token meets all of them: with `norm_topk`, and m a divisor of top_k, the mixture starts
    as the dense one was, as it does with copies. Shared experts start silent.
    """
    m = source.width // block.d_expert
    exact = m * block.d_expert == source.width and block.expert_layers == 1
    split = exact and m > 1 and block.n_experts % m == 0 and block.top_k % m == 0
    found: Found = {}
    for matrix in ("gate_proj", "up_proj", "down_proj"):
        name, of_name = f"experts.{matrix}.weight", f"{matrix}.weight"
        if name not in mine or of_name not in theirs or block.expert_layers > 1:
            continue
        axis = 1 if matrix == "down_proj" else 0
        dense = theirs[of_name].to(mine[name])
        for e, expert in enumerate(mine[name]):
            start = e % m * block.d_expert if split else 0
            part = dense.narrow(axis, start, min(block.d_expert, source.width - start))
            _overlay(expert, part)
        if matrix == "down_proj":
            mine[name].mul_((m if split else 1) / block.scale)
        found[name] = "converted", of_name
    if split:
        router = mine["router.weight"][: block.n_experts]
        router.copy_(router[::m].repeat_interleave(m, 0))
    if "shared.down_proj.weight" in mine:
        mine["shared.down_proj.weight"].zero_()
    return found


def _stem(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _name(stem: str, weights: Weights) -> str | None:
    return next((name for name in (f"{stem}.weight", stem) if name in weights), None)
