"""How the branches of a parallel group are joined."""

from typing import Literal

from .blocks.block import Weight, vector
from .document import Terse


class Join(Terse):
    """The branches of `[a|b]` are blocks of their own symbols that read the same input.

    The norms around the sub-block serve all of them; their outputs are summed, or averaged. With
    `branch_norms` each output has a norm of its own besides, and each branch but the first reads
    the residual stream through a norm of its own (Gemma 4). `branch_gates` scales each output by a
    learned vector (Hymba, arXiv 2411.13676).
    """

    fusion: Literal["sum", "mean"] = "sum"
    branch_norms: bool = False
    branch_gates: bool = False

    def gates(self, d_model: int, branches: int) -> tuple[Weight, ...]:
        """The learned vectors of the branches."""
        indices = range(branches if self.branch_gates else 0)
        return tuple(vector(f"branches.{index}.gate", d_model) for index in indices)
