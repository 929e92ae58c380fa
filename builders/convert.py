"""Initialization of a model from the weights of another one, of whatever shape.

    inherited = inherit(child, parent)

A block of the same kind in other sizes takes the leading heads, channels and columns; a mixer of
another kind takes queries, keys, values and output from the projections with the same role (as in
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
from ..search_space.blocks.heads import HeadLayout
from ..search_space.blocks.moe import MoE
from ..search_space.pattern import is_feed_forward
from .model import HybridLM

How = Literal["whole", "part", "converted", "fresh"]
Weights = Mapping[str, Tensor]
CONVERTIBLE = ("q", "k", "v", "z", "o")


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """How a parameter was initialized.

    `whole` is a copy of the parameter of the same name and shape, `part` the leading part of one
    of another shape, `converted` a tensor with the same role in another kind of block, and `fresh`
    the initialization of the builder. `source` is the parent's parameter.
    """

    parameter: str
    how: How
    source: str | None = None


@torch.no_grad()
def inherit(child: HybridLM, parent: HybridLM) -> tuple[Inherited, ...]:
    """Fill `child` in place from `parent`; return how each parameter was initialized.

    A sub-block takes the weights of the nearest one in relative depth: a mixer those of a mixer,
    of the same kind if there is one, a feed-forward those of a feed-forward. MTP modules stay
    fresh.
    """
    mine, theirs = dict(child.named_parameters()), dict(parent.named_parameters())
    found: dict[str, Inherited] = {}
    for name in mine:
        if not name.startswith(("blocks.", "mtp.")):
            found[name] = _from_namesake(mine, theirs, name, name)
    for body, source in _pairs(child, parent):
        found |= _inherit_body(mine, theirs, body, source)
    return tuple(found.get(name, Inherited(parameter=name, how="fresh")) for name in mine)


def summary(inherited: tuple[Inherited, ...]) -> dict[How, int]:
    """How many parameter tensors were initialized in which way."""
    return dict(Counter(one.how for one in inherited))


def _pairs(child: HybridLM, parent: HybridLM) -> list[tuple[Body, Body]]:
    found = []
    for feeds in (False, True):
        mine, theirs = (
            [body for body in model.architecture.bodies if is_feed_forward(body.symbol) == feeds]
            for model in (child, parent)
        )
        for index, body in enumerate(mine if theirs else ()):
            depth = index / max(1, len(mine) - 1) * (len(theirs) - 1)
            same_kind = [i for i, b in enumerate(theirs) if b.block.kind == body.block.kind]
            nearest = min(same_kind or range(len(theirs)), key=lambda i: abs(i - depth))
            found.append((body, theirs[nearest]))
    return found


def _inherit_body(mine: Weights, theirs: Weights, body: Body, source: Body) -> dict[str, Inherited]:
    """Fill a block, and the norms around it where it is a sub-block of its own."""
    inherited = {}
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
        inherited[to + name] = Inherited(parameter=to + name, how=how, source=of + from_name)
    if (body.branch is None) == (source.branch is None):
        around, of_around = (prefix.removesuffix("body.") for prefix in (to, of))
        if body.branch == 0:  # the norms around a parallel group are filled with its first branch
            around, of_around = f"blocks.{body.sub_block}.", f"blocks.{source.sub_block}."
        for name in mine:
            rest = name.removeprefix(around)
            if rest != name and "body." not in rest:
                inherited[name] = _from_namesake(mine, theirs, name, of_around + rest)
    return inherited


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


def _indices(layout: HeadLayout) -> dict[str, Tensor]:
    """The rows or columns of each part of a weight, [H, W]."""
    if layout.interleaved:
        heads, width = next(iter(layout.parts.values()))
        index_HPW = torch.arange(heads * len(layout.parts) * width).view(heads, -1, width)
        return dict(zip(layout.parts, index_HPW.unbind(1), strict=True))
    indices, start = {}, 0
    for part, (heads, width) in layout.parts.items():
        indices[part] = start + torch.arange(heads * width).view(heads, width)
        start += heads * width
    return indices


Found = dict[str, tuple[How, str]]  # by parameter: how, and from which


def _resized(block: Block, source: Block, mine: Weights, theirs: Weights) -> Found:
    found: Found = {}
    layouts, of_source = block.head_layout(), source.head_layout()
    for name, weight in mine.items():
        if name not in theirs or theirs[name].ndim != weight.ndim:
            continue
        layout = layouts.get(_stem(name))
        if layout is None or (layout.axis == 1 and weight.ndim == 1):
            found[name] = _overlay(weight, theirs[name]), name
            continue
        indices = _indices(of_source[_stem(name)])
        for part, index_HW in _indices(layout).items():
            from_HW = indices.get(part)
            if from_HW is not None:
                leading = torch.arange(min(len(index_HW), len(from_HW)))
                _move(weight, layout.axis, index_HW[leading], theirs[name], from_HW[leading])
        found[name] = "whole" if weight.shape == theirs[name].shape else "part", name
    return found


def _converted(block: Block, source: Block, mine: Weights, theirs: Weights) -> Found:
    """Each head takes the source's head at the same relative index, so that grouped keys stay with
    their queries."""
    parts: dict[str, tuple[str, int, Tensor]] = {}
    for stem, layout in source.head_layout().items():
        name = _name(stem, theirs)
        if name is not None:
            parts |= {part: (name, layout.axis, i) for part, i in _indices(layout).items()}
    if "k" in parts and "v" not in parts:  # attention with k_eq_v
        parts["v"] = parts["k"]
    found: Found = {}
    for stem, layout in block.head_layout().items():
        name = _name(stem, mine)
        for part, index_HW in _indices(layout).items():
            if name is None or part not in CONVERTIBLE or part not in parts:
                continue
            of_name, axis, from_HW = parts[part]
            heads = torch.arange(len(index_HW)) * len(from_HW) // len(index_HW)
            if axis == layout.axis:
                _move(mine[name], axis, index_HW, theirs[of_name], from_HW[heads])
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
    that a token is routed to all of them: with `norm_topk`, and m a divisor of top_k, the mixture
    computes what the dense feed-forward does, as it does with copies. The output projection of
    shared experts is zero.
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
