"""Boosted regression trees over binned inputs, evaluated with bit masks (QuickScorer).

A tree has at most `MAX_LEAVES` leaves, numbered from left to right. An inner node whose test sends
an input to the right rules out the leaves of its left branch; the first leaf that no node rules out
is the answer (Lucchese et al., QuickScorer, SIGIR 2015). All trees see all inputs in a few array
operations. Nodes are stored from left to right: the left branch of node j ends at leaf j, so that
its number of leaves alone determines the mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

MAX_LEAVES = 32  # bits of a mask
BLOCK = 256  # inputs evaluated at once, so that intermediate arrays stay in the CPU cache
_NODE_FIELDS = ("feature", "bin", "width")


@dataclass(frozen=True, kw_only=True)
class Bins:
    """The edges between the bins of each feature, [features, edges], padded with infinity."""

    edges: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, count: int) -> "Bins":
        """At most `count` bins per feature, split halfway between its values or their quantiles."""
        columns = []
        for column in values.T:
            seen = np.unique(column)
            if len(seen) > count:
                seen = np.unique(np.quantile(column, np.linspace(0, 1, count), method="nearest"))
            columns.append(np.unique(((seen[1:] + seen[:-1]) / 2).astype(np.float16)))
        edges = np.full((len(columns), count), np.inf, np.float16)
        for row, column in zip(edges, columns, strict=True):
            row[: len(column)] = column
        return cls(edges=edges)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The bin of each value, uint8 [n, features]."""
        found = np.empty(values.shape, np.uint8)
        for index, edges in enumerate(self._sorted):
            found[:, index] = edges.searchsorted(values[:, index])
        return found

    @cached_property
    def _sorted(self) -> list[np.ndarray]:
        return [row[np.isfinite(row)].astype(np.float32) for row in self.edges]


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The sum of many trees over binned features, plus `start`.

    A node sends bins above `bin` of `feature` to the right, past the `width` leaves of its left
    branch. `sizes` are the numbers of nodes of the trees; the value of a leaf is its int8 times
    `step`.
    """

    feature: np.ndarray  # uint8 [nodes]
    bin: np.ndarray  # uint8 [nodes]
    width: np.ndarray  # uint8 [nodes]
    sizes: np.ndarray  # uint8 [trees]
    leaves: np.ndarray  # int8 [trees + nodes]
    step: float
    start: float

    ARRAYS: ClassVar = (*_NODE_FIELDS, "sizes", "leaves")

    @classmethod
    def nothing(cls) -> "Trees":
        """No trees: 0 for every input."""
        none = {name: np.empty(0, np.uint8) for name in cls.ARRAYS}
        return cls(**none, step=1.0, start=0.0)

    def __call__(self, binned: np.ndarray) -> np.ndarray:
        """The sum for each of n binned inputs, float64 [n]."""
        if not len(self.sizes):
            return np.full(len(binned), self.start)
        blocks = [binned[at : at + BLOCK] for at in range(0, len(binned), BLOCK)]
        return self.start + np.concatenate([self._sum(block) for block in blocks])

    def _sum(self, binned: np.ndarray) -> np.ndarray:
        right = binned[:, self.feature] > self.bin
        masks = np.where(right, self._masks, np.uint32(0))
        ruled_out = np.bitwise_or.reduceat(masks, self._starts, axis=1)
        free = ~ruled_out
        lowest = free & (~free + np.uint32(1))
        leaf = np.frexp(lowest)[1] - 1
        values = self._values[self._first_leaves + leaf]
        return values.sum(axis=1, dtype=float)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes.astype(int))[:-1]])

    @cached_property
    def _first_leaves(self) -> np.ndarray:
        return self._starts + np.arange(len(self.sizes))

    @cached_property
    def _masks(self) -> np.ndarray:
        index = np.arange(len(self.width)) - np.repeat(self._starts, self.sizes)
        run = (np.uint64(1) << self.width.astype(np.uint64)) - np.uint64(1)
        return (run << (index + 1 - self.width).astype(np.uint64)).astype(np.uint32)

    @cached_property
    def _values(self) -> np.ndarray:
        return self.leaves * np.float32(self.step)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without `step` and `start`."""
        return {name: getattr(self, name) for name in self.ARRAYS}

    @classmethod
    def cut(
        cls,
        joined: Mapping[str, np.ndarray],
        tree: int,
        trees: int,
        node: int,
        nodes: int,
        step: float,
        start: float,
    ) -> "Trees":
        """`trees` trees with `nodes` nodes, cut from concatenated arrays at `tree` and `node`."""
        leaf = tree + node
        return cls(
            **{name: joined[name][node : node + nodes] for name in _NODE_FIELDS},
            sizes=joined["sizes"][tree : tree + trees],
            leaves=joined["leaves"][leaf : leaf + trees + nodes],
            step=step,
            start=start,
        )


def exported(model: "HistGradientBoostingRegressor") -> Trees:
    """The trees of a regressor that was fitted on bins, its leaves rounded to int8.

    Its thresholds lie between two bins, so that their integer part is the lower one.
    """
    nodes: list[tuple[int, int, int]] = []
    leaves: list[float] = []
    sizes: list[int] = []
    for (predictor,) in model._predictors:
        if len(predictor.nodes) > 1:
            before = len(nodes)
            _walk(predictor.nodes, 0, nodes, leaves)
            sizes.append(len(nodes) - before)
            assert sizes[-1] < MAX_LEAVES, "a mask has a bit per leaf"
    columns = np.array(nodes, np.uint8).reshape(-1, len(_NODE_FIELDS)).T
    step = max(map(abs, leaves), default=0.0) / 127 or 1.0
    return Trees(
        **dict(zip(_NODE_FIELDS, columns.copy(), strict=True)),
        sizes=np.array(sizes, np.uint8),
        leaves=np.rint(np.array(leaves) / step).astype(np.int8),
        step=step,
        start=float(np.ravel(model._baseline_prediction)[0]),
    )


def _walk(
    tree: np.ndarray, index: int, nodes: list[tuple[int, int, int]], leaves: list[float]
) -> None:
    """Append the inner nodes and leaf values below a node, from left to right."""
    node = tree[index]
    if node["is_leaf"]:
        leaves.append(float(node["value"]))
        return
    before = len(leaves)
    _walk(tree, int(node["left"]), nodes, leaves)
    nodes.append((int(node["feature_idx"]), int(node["num_threshold"]), len(leaves) - before))
    _walk(tree, int(node["right"]), nodes, leaves)
