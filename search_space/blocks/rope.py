"""Rotary positions: the share of a head that is rotated, the base, how longer contexts are reached."""

from typing import Literal

from pydantic import Field, PositiveInt

from ..document import Terse


class RopeScaling(Terse):
    """How rotary positions are stretched beyond the length they were trained at.

    `linear` divides positions by `factor`; `dynamic` raises the base instead (by `alpha`, Hunyuan);
    `yarn` (arXiv 2309.00071) interpolates the slow dimensions, turning between `beta_slow` and
    `beta_fast` rotations within `original_context`, and sharpens the softmax by `mscale_all_dim`;
    `llama3` does so between two wavelengths; `longrope` (arXiv 2402.13753) has a factor for each
    pair; `proportional` keeps the frequencies of a whole head on the part that is rotated.
    """

    type: Literal["linear", "dynamic", "yarn", "llama3", "longrope", "proportional"]
    factor: float = Field(default=1.0, gt=0)
    original_context: PositiveInt | None = None
    alpha: float | None = Field(default=None, gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True  # whole dimensions at the two ends of yarn's ramp
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


class Rope(Terse):
    """Rotary position embedding (arXiv 2104.09864) over the first `partial` share of a head.

    Pairs are the two halves of that part; with `interleaved` they are neighbors, as in
    DeepSeek's and Llama 4's code. A trained model keeps the one it was trained with; to a new one
    it makes no difference.
    """

    theta: float = Field(default=10_000.0, gt=0)
    partial: float = Field(default=1.0, gt=0, le=1)
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def rotated(self, head_dim: int) -> int:
        """How many dimensions of a head carry the position."""
        return int(head_dim * self.partial)
