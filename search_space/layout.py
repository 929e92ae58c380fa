"""Layouts: rules that place attention among linear mixers and write a pattern."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .document import Record
from .pattern import FEED_FORWARDS, MAX_SUB_BLOCKS, SYMBOLS, compress

Placement = Literal["even", "first", "middle", "last"]


class Layout(Record):
    """A rule that places attention layers among linear ones and writes the pattern."""

    layers: int = Field(ge=1, le=MAX_SUB_BLOCKS)
    """Mixers, each followed by `feedforward`."""
    ratio: float = Field(ge=0, le=1)
    """Fraction of the mixers that are attention; ratio * layers is rounded."""
    placement: Placement = "even"
    """Where attention layers are. `even` ends each group with its attention layer, as in Qwen3-Next
    and Kimi Linear; the others keep them together."""
    attention: str | None = None
    """Symbol of the attention block."""
    linear: str | None = None
    """Symbol of the mixer of all other layers."""
    feedforward: str | None = None
    """Symbol of the feed-forward after each mixer; null: none."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        for field, needed in (
            ("attention", self.num_attention > 0),
            ("linear", self.num_attention < self.layers),
        ):
            symbol = getattr(self, field)
            if needed and symbol is None:
                raise ValueError(
                    f"{field} must name a mixer, since {self.num_attention} of {self.layers} "
                    "layers are attention"
                )
            if symbol is not None and (symbol[0] not in SYMBOLS or symbol[0] in FEED_FORWARDS):
                raise ValueError(f"{field} must be a mixer's symbol, got {symbol!r}")
        if self.feedforward is not None and self.feedforward[0] not in FEED_FORWARDS:
            known = " ".join(FEED_FORWARDS)
            raise ValueError(f"feedforward must be one of {known}, got {self.feedforward!r}")
        return self

    @property
    def num_attention(self) -> int:
        """Attention layers."""
        return round(self.ratio * self.layers)

    def pattern(self) -> str:
        """The layout written in the layer notation."""
        attention = _positions(self.placement, self.num_attention, self.layers)
        blocks: list[str] = []
        for layer in range(self.layers):
            mixer = self.attention if layer in attention else self.linear
            blocks += [block for block in (mixer, self.feedforward) if block]
        return compress(tuple(blocks))


def _positions(placement: Placement, count: int, layers: int) -> frozenset[int]:
    match placement:
        case "even":
            return frozenset((index + 1) * layers // count - 1 for index in range(count))
        case "first":
            start = 0
        case "middle":
            start = (layers - count) // 2
        case "last":
            start = layers - count
    return frozenset(range(start, start + count))
