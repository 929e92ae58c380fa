"""How the branches of a parallel group are joined."""

from typing import Literal

from .blocks.block import Weight, vector
from .document import Terse


class Join(Terse):
    """How the outputs of the branches of a parallel group `[a|b]` are joined.

    The branches read the same input, between the norms around the sub-block.
    """

    fusion: Literal["sum", "mean"] = "sum"
    """How outputs are combined."""
    branch_norms: bool = False
    """A norm of each output; each branch but the first reads through a norm of its own (Gemma
    4)."""
    branch_gates: bool = False
    """A learned vector that scales each output (Hymba, arXiv 2411.13676)."""

    def gates(self, d_model: int, branches: int) -> tuple[Weight, ...]:
        """The learned vectors of the branches."""
        indices = range(branches if self.branch_gates else 0)
        return tuple(vector(f"branches.{index}.gate", d_model) for index in indices)
