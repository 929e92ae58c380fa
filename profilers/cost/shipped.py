"""The shipped cost model: two files beside this one, written by the fit, read once."""

import json
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from .model import FamilyModel, Model
from .trees import Bins, Trees
from .work import Constants

FACTS, ARRAYS = "fitted.json", "fitted.npz"
DIGITS = 4  # significant digits of a constant


@cache
def shipped() -> Model:
    """The model of the package, fitted on public timings of eight GPUs."""
    return read(files("archfront.profilers.cost"))


def write(model: Model, folder: Path) -> int:
    """Write a model without local fits into a folder; returns the bytes of both files.

    The trees of all models are concatenated in the arrays; the JSON has the counts to cut them.
    """
    facts: dict[str, Any] = {"inflation": _rounded(model.inflation), "families": {}}
    edges: list[np.ndarray] = []
    trees: list[dict[str, np.ndarray]] = []
    for family, part in sorted(model.families.items()):
        counts = np.isfinite(part.bins.edges).sum(axis=1)
        edges += [row[:count] for row, count in zip(part.bins.edges, counts, strict=True)]
        stacks = {"": part.pooled, **dict(sorted(part.own.items()))}
        trees += [stack.arrays() for stack in stacks.values()]
        facts["families"][family] = {
            "constants": {
                name: {where: _rounded(vars(found)) for where, found in known.items()}
                for name, known in part.constants.items()
            },
            "half_widths": {name: _rounded(found) for name, found in part.half_widths.items()},
            "members": part.members,
            "residual_fraction": part.residual_fraction,
            "edges": counts.tolist(),
            "trees": {
                name: {
                    "trees": len(stack.sizes),
                    "nodes": len(stack.feature),
                    "step": stack.step,
                    "start": stack.start,
                }
                for name, stack in stacks.items()
            },
        }
    joined = {name: np.concatenate([arrays[name] for arrays in trees]) for name in Trees.ARRAYS}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    np.savez_compressed(folder / ARRAYS, edges=np.concatenate(edges), allow_pickle=False, **joined)
    return sum((folder / name).stat().st_size for name in (FACTS, ARRAYS))


def read(folder: Traversable) -> Model:
    """Read a model that `write` wrote."""
    facts = json.loads((folder / FACTS).read_text())
    with (folder / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        joined = {name: arrays[name] for name in arrays.files}
    families: dict[str, FamilyModel] = {}
    edge = tree = node = 0
    for family, part in facts["families"].items():
        width = max(part["edges"])
        edges = np.full((len(part["edges"]), width), np.inf, np.float16)
        for row, count in zip(edges, part["edges"], strict=True):
            row[:count] = joined["edges"][edge : edge + count]
            edge += count
        stacks: dict[str, Trees] = {}
        for name, size in part["trees"].items():
            stacks[name] = Trees.cut(
                joined,
                tree,
                size["trees"],
                node,
                size["nodes"],
                size["step"],
                size["start"],
            )
            tree, node = tree + size["trees"], node + size["nodes"]
        families[family] = FamilyModel(
            constants={
                name: {where: Constants(**values) for where, values in known.items()}
                for name, known in part["constants"].items()
            },
            bins=Bins(edges=edges),
            pooled=stacks.pop(""),
            own=stacks,
            members={name: tuple(names) for name, names in part["members"].items()},
            residual_fraction=part["residual_fraction"],
            half_widths=part["half_widths"],
        )
    return Model(families=families, inflation=facts["inflation"])


def _rounded(values: Any) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}
