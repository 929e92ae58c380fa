"""A residual sub-block: its body or branches, the norms around them, the way into the stream."""

# B batch, T tokens, D model width

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..search_space.architecture import Architecture
from ..search_space.blocks.block import Block
from ..search_space.join import Join
from ..search_space.pattern import units
from .body import Body, Pass, Unbuilt
from .caches import Memory
from .depth import DepthRouter
from .experts import RAW
from .kinds import BODIES
from .merging import MergeCache, TokenMerge
from .mixers.shared import NUDGE, SharedBlock
from .parts import Parts
from .streams import LookBack, StreamMixture, close_group


class BranchCaches(Memory):
    """The caches of a group's branches; None where a branch has no memory."""

    def __init__(self, branches: list[Any]) -> None:
        self.branches = branches

    def tensors(self) -> list[Tensor]:
        return [tensor for cache in self.branches if cache for tensor in cache.tensors()]

    def fill_random(self, tokens: int) -> None:
        for cache in self.branches:
            if cache is not None:
                cache.fill_random(tokens)


def body_of(block: Block, parts: Parts) -> Body:
    """The module of a block. Raises Unbuilt where a field of the record has none."""
    body = BODIES[block.kind]
    missing = set(block.model_dump()) - body.fields
    if missing:
        raise Unbuilt(f"{block.kind} with {', '.join(sorted(missing))} has no module yet")
    return body(block, parts)


class SubBlock(nn.Module):
    """keep * x + add * norm_out(body(norm_in(x))), with the norms that the placement asks for.

    `x` is the residual stream x_BTD, or with hyper-connections all of them, x_BTSD.
    """

    def __init__(self, architecture: Architecture, index: int, parts: Parts) -> None:
        super().__init__()
        self.residual = architecture.residual
        self.on_stream = architecture.norm_placement(index) == "stream"
        blocks = [body.block for body in architecture.bodies if body.sub_block == index]
        self.norm_in = _norm(parts, "norm_in")
        self.norm_out = _norm(parts, "norm_out")
        self.body = self.branches = None
        if len(blocks) == 1:
            self.body = body_of(blocks[0], parts)
        else:
            branches = [
                Branch(block, parts.under(f"branches.{i}.")) for i, block in enumerate(blocks)
            ]
            self.branches = cast("Sequence[Branch]", nn.ModuleList(branches))
        join = architecture.joins.get(architecture.symbols[index], Join())
        self.share = 1 / len(blocks) if join.fusion == "mean" else 1.0
        self.nudges = isinstance(self.body, SharedBlock)
        self.router = self.merge = self.streams = self.look_back = None
        if blocks[0].token_merge is not None:
            self.merge = TokenMerge(blocks[0].token_merge)
        if blocks[0].depth_capacity is not None:
            self.router = DepthRouter(blocks[0].depth_capacity, parts.under("depth_router."))
        if architecture.hyper_connections and not blocks[0].own_norms:
            self.streams = StreamMixture(architecture.hyper_connections, parts.under("streams."))
        self.closes_group = False
        if architecture.attention_residuals and not blocks[0].own_norms:
            self.look_back = LookBack(parts)
            first = sum(len(layer) for layer in units(architecture.symbols)[: parts.layer])
            every = architecture.attention_residuals.block
            self.closes_group = index == first and parts.layer % every == 0

    def new_cache(self, batch: int) -> Any:
        if self.branches is not None:
            return BranchCaches([branch.body.new_cache(batch) for branch in self.branches])
        assert self.body is not None, "one body, or branches"
        cache = self.body.new_cache(batch)
        return cache if self.merge is None else MergeCache(cache, self.merge.size)

    def forward(self, x: Tensor, run: Pass, cache: Any = None) -> Tensor:
        if self.nudges:
            run.left[NUDGE] = self._inside(x, run, cache)
            return x
        if self.streams is not None:
            return self.streams(x, lambda h_BTD: self._inside(h_BTD, run, cache))
        if self.look_back is not None:
            x = close_group(x, run) if self.closes_group else x
            return x + self._inside(self.look_back(x, run), run, cache)
        if self.on_stream:
            x = self.norm_in(x)
        return self.residual.keep * x + self.residual.add * self._inside(x, run, cache)

    def _inside(self, x_BTD: Tensor, run: Pass, cache: Any) -> Tensor:
        """What the sub-block adds to what it reads."""
        if NUDGE in run.left and not self.nudges:
            x_BTD = x_BTD + run.left.pop(NUDGE)
        if self.router is not None:
            return self.router(x_BTD, run, lambda h, part: self._normed(h, part, cache))
        if self.merge is not None:
            return self.merge(x_BTD, run, self._normed, cache)
        return self._normed(x_BTD, run, cache)

    def _normed(self, x_BTD: Tensor, run: Pass, cache: Any) -> Tensor:
        h_BTD = x_BTD if self.on_stream else self.norm_in(x_BTD)
        if self.branches is None:
            assert self.body is not None, "one body, or branches"
            return self.norm_out(self.body(h_BTD, run, cache))
        run.left[RAW] = x_BTD
        caches = [None] * len(self.branches) if cache is None else cache.branches
        given = [b(h_BTD, x_BTD, run, c) for b, c in zip(self.branches, caches, strict=True)]
        del run.left[RAW]
        return self.norm_out(torch.stack(given).sum(0) * self.share)


def _norm(parts: Parts, name: str) -> nn.Module:
    return parts.stack_norm(name) if parts.has(f"{name}.weight") else nn.Identity()


class Branch(nn.Module):
    """One body of a parallel group, with the norms and the gate that the join gives it."""

    def __init__(self, block: Block, parts: Parts) -> None:
        super().__init__()
        self.norm_in = parts.stack_norm("norm_in") if parts.has("norm_in.weight") else None
        self.norm_out = _norm(parts, "norm_out")
        self.body = body_of(block, parts)
        self.gate = parts.filled("gate", 1.0, wide=False) if parts.has("gate") else None

    def forward(self, h_BTD: Tensor, x_BTD: Tensor, run: Pass, cache: Any) -> Tensor:
        """`h` is the group's normed input, `x` the stream that a norm of the branch's own reads."""
        if self.norm_in is not None:
            h_BTD = self.norm_in(x_BTD)
        y_BTD = self.norm_out(self.body(h_BTD, run, cache))
        return y_BTD if self.gate is None else y_BTD * self.gate
