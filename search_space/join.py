"""Joins of the branches of parallel groups."""

from typing import Literal

from .blocks.block import Weight, vector
from .document import Terse


class Join(Terse):
    """The join of the branches of a parallel group `[a|b]`.

    The branches read the same input, between the norms around the sub-block.
    """

    fusion: Literal["sum", "mean"] = "sum"
    """Sum or mean of the outputs."""
    branch_norms: bool = False
    """A norm of each output, and of the input of each branch but the first (Gemma 4)."""
    branch_gates: bool = False
    """A learned vector that scales each output (Hymba, arXiv 2411.13676)."""

    def gates(self, d_model: int, branches: int) -> tuple[Weight, ...]:
        """The gates of the branches."""
        indices = range(branches if self.branch_gates else 0)
        return tuple(vector(f"branches.{index}.gate", d_model) for index in indices)
