"""A residual sub-block: body or parallel branches, the norms around them, the residual connection.

The stack carries the residual stream as (x, added): the stream and the output of the last
sub-block, which is added in the kernel of the next norm.
"""

# B batch, T tokens, S residual streams, D model width

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
from .kinds import BODIES
from .layers import RMSNorm
from .merging import MergeCache, TokenMerge
from .mixers.shared import SharedBlock
from .parameters import Parameters
from .streams import AttentionResidual, StreamMixture, close_group

Stream = tuple[Tensor, Tensor | None]  # x and what is still to be added to it


class BranchCaches(Memory):
    """The caches of a parallel group's branches; None where a branch has no memory."""

    def __init__(self, branches: list[Any]) -> None:
        self.branches = branches

    def tensors(self) -> list[Tensor]:
        return [tensor for cache in self.branches if cache for tensor in cache.tensors()]

    def fill_random(self, tokens: int) -> None:
        for cache in self.branches:
            if cache is not None:
                cache.fill_random(tokens)


def body_of(block: Block, params: Parameters) -> Body:
    """The module of a block. Raises Unbuilt where it does not implement a field of the record."""
    body = BODIES[block.kind]
    missing = set(block.model_dump()) - body.fields
    if missing:
        raise Unbuilt(f"{block.kind} with {', '.join(sorted(missing))} has no module yet")
    return body(block, params)


class SubBlock(nn.Module):
    """y = keep * x + add * norm_out(body(norm_in(x))), with the norms of the placement.

    `x` is the residual stream x_BTD, or with hyper-connections all streams, x_BTSD. In the `stream`
    placement norm_in(x) takes the place of x in both terms. A Zamba2 shared block leaves the stream
    as it is; its output is added to the input of the next sub-block.
    """

    def __init__(self, architecture: Architecture, index: int, params: Parameters) -> None:
        super().__init__()
        self.residual = architecture.residual
        self.on_stream = architecture.norm_placement(index) == "stream"
        blocks = [body.block for body in architecture.bodies if body.sub_block == index]
        self.norm_in = _norm(params, "norm_in")
        self.norm_out = _norm(params, "norm_out")
        self.body = self.branches = None
        if len(blocks) == 1:
            self.body = body_of(blocks[0], params)
        else:
            branches = [
                Branch(block, params.under(f"branches.{i}.")) for i, block in enumerate(blocks)
            ]
            self.branches = cast("Sequence[Branch]", nn.ModuleList(branches))
        join = architecture.joins.get(architecture.symbols[index], Join())
        self.branch_weight = 1 / len(blocks) if join.fusion == "mean" else 1.0
        self.is_shared_block = isinstance(self.body, SharedBlock)
        self.router = self.merge = self.streams = self.look_back = None
        if blocks[0].token_merge is not None:
            self.merge = TokenMerge(blocks[0].token_merge)
        if blocks[0].depth_capacity is not None:
            self.router = DepthRouter(blocks[0].depth_capacity, params.under("depth_router."))
        if architecture.hyper_connections and not blocks[0].own_norms:
            self.streams = StreamMixture(architecture.hyper_connections, params.under("streams."))
        self.closes_group = False
        if architecture.attention_residuals and not blocks[0].own_norms:
            self.look_back = AttentionResidual(params)
            first = sum(len(layer) for layer in units(architecture.symbols)[: params.layer])
            every = architecture.attention_residuals.block
            self.closes_group = index == first and params.layer % every == 0
        self.reads_sum = (
            self.router is None
            and self.merge is None
            and self.streams is None
            and self.look_back is None
            and not self.is_shared_block
        )

    def new_cache(self, batch: int) -> Any:
        """An empty cache for `batch` rows; None for a sub-block without memory."""
        if self.branches is not None:
            return BranchCaches([branch.body.new_cache(batch) for branch in self.branches])
        assert self.body is not None, "one body, or branches"
        cache = self.body.new_cache(batch)
        return cache if self.merge is None else MergeCache(cache, self.merge.size)

    def forward(self, x: Tensor, run: Pass, cache: Any = None) -> Tensor:
        """The stream after this sub-block, x_BTD or x_BTSD as the input."""
        return stream_sum(self.advance((x, None), run, cache))

    def advance(self, stream: Stream, run: Pass, cache: Any = None) -> Stream:
        """The stream after this sub-block, the last sum left to the next norm where possible."""
        if not self.reads_sum or run.shared_block_output_BTD is not None:
            x = stream_sum(stream)
            h_BTD = None
        else:
            h_BTD, x = norm_of_sum(self.norm_in, stream)
        if self.is_shared_block:
            run.shared_block_output_BTD = self._inner(x, run, cache)
            return x, None
        if self.streams is not None:
            return self.streams(x, lambda h_BTD: self._inner(h_BTD, run, cache)), None
        if self.look_back is not None:
            x = close_group(x, run) if self.closes_group else x
            return x, self._inner(self.look_back(x, run), run, cache)
        if self.on_stream:
            x = self.norm_in(x) if h_BTD is None else h_BTD
        y = self._inner(x, run, cache, h_BTD)
        y = y if self.residual.add == 1 else self.residual.add * y
        return x if self.residual.keep == 1 else self.residual.keep * x, y

    def _inner(self, x_BTD: Tensor, run: Pass, cache: Any, h_BTD: Tensor | None = None) -> Tensor:
        """Output before the residual connection; `h` is norm_in(x) if already computed."""
        if not self.is_shared_block and run.shared_block_output_BTD is not None:
            x_BTD = x_BTD + run.shared_block_output_BTD
            run.shared_block_output_BTD = None
        if self.router is not None:
            return self.router(x_BTD, run, lambda x, subset: self._normed(x, subset, cache))
        if self.merge is not None:
            return self.merge(x_BTD, run, self._normed, cache)
        return self._normed(x_BTD, run, cache, h_BTD)

    def _normed(self, x_BTD: Tensor, run: Pass, cache: Any, h_BTD: Tensor | None = None) -> Tensor:
        if h_BTD is None:
            h_BTD = x_BTD if self.on_stream else self.norm_in(x_BTD)
        if self.branches is None:
            assert self.body is not None, "one body, or branches"
            return self.norm_out(self.body(h_BTD, run, cache))
        run.unnormed_BTD = x_BTD
        caches = [None] * len(self.branches) if cache is None else cache.branches
        outputs = [b(h_BTD, x_BTD, run, c) for b, c in zip(self.branches, caches, strict=True)]
        run.unnormed_BTD = None
        return self.norm_out(torch.stack(outputs).sum(0) * self.branch_weight)


def stream_sum(stream: Stream) -> Tensor:
    """The residual stream as one tensor."""
    x, added = stream
    return x if added is None else x + added


def norm_of_sum(norm: nn.Module, stream: Stream) -> tuple[Tensor, Tensor]:
    """(norm(sum), sum) of a stream; an RMSNorm computes both in one kernel."""
    x, added = stream
    if added is not None and isinstance(norm, RMSNorm):
        return norm.of_sum(added, x)
    x = stream_sum(stream)
    return norm(x.view_as(x)), x  # a view as in add_rms_norm: equal bits of the gradient


def run_stack(blocks: Sequence[SubBlock], x: Tensor, run: Pass, caches: list[Any] | None) -> Stream:
    """The stream after all sub-blocks, in order; `caches` are updated in place."""
    stream = x, None
    for index, block in enumerate(blocks):
        stream = block.advance(stream, run, None if caches is None else caches[index])
    return stream


def _norm(params: Parameters, name: str) -> nn.Module:
    return params.stack_norm(name) if params.has(f"{name}.weight") else nn.Identity()


class Branch(nn.Module):
    """One body of a parallel group, with the norms and the gate of the join."""

    def __init__(self, block: Block, params: Parameters) -> None:
        super().__init__()
        self.norm_in = params.stack_norm("norm_in") if params.has("norm_in.weight") else None
        self.norm_out = _norm(params, "norm_out")
        self.body = body_of(block, params)
        self.gate = params.constant("gate", 1.0, fp32=False) if params.has("gate") else None

    def forward(self, h_BTD: Tensor, x_BTD: Tensor, run: Pass, cache: Any) -> Tensor:
        """y_BTD; `h` is the group's normed input, `x` the stream, which a norm of its own reads."""
        if self.norm_in is not None:
            h_BTD = self.norm_in(x_BTD)
        y_BTD = self.norm_out(self.body(h_BTD, run, cache))
        return y_BTD if self.gate is None else y_BTD * self.gate
