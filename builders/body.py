"""What the stack asks of the inside of a sub-block."""

# B batch, T tokens, D model width

from typing import Any, ClassVar

from torch import Tensor, nn


class Unbuilt(ValueError):
    """The architecture is legal and counted, but a part of it has no module yet."""


class Body(nn.Module):
    """`forward` maps x_BTD to x_BTD and looks at no later token.

    A body that remembers earlier tokens overrides the two ways to run it piece by piece: `prefill`
    reads a text and starts a cache, `step` reads one token a sequence, x_B1D, and updates the
    cache in place. Run so, the outputs equal those of `forward` on the whole text.

    `fields` are those of the record that it obeys: a record that says more is refused, so that a
    field without a module is never overlooked.
    """

    fields: ClassVar[frozenset[str]]

    def prefill(self, x_BTD: Tensor) -> tuple[Tensor, Any]:
        return self(x_BTD), None

    def step(self, x_BTD: Tensor, cache: Any) -> Tensor:
        return self(x_BTD)
