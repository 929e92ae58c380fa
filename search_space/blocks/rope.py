"""Rotary position embeddings and their extension to longer contexts."""

from typing import Literal

from pydantic import Field, PositiveInt

from ..document import Terse


class RopeScaling(Terse):
    """Extension of rotary positions beyond the context they were trained at."""

    type: Literal["linear", "dynamic", "yarn", "llama3", "longrope", "proportional"]
    """Method. `linear` divides positions by `factor`; `dynamic` raises the base; `yarn` (arXiv
    2309.00071) interpolates the slow dimensions; `llama3` does so between two wavelengths;
    `longrope` (arXiv 2402.13753) has a factor per pair; `proportional` keeps the frequencies of a
    whole head on the part that is rotated."""
    factor: float = Field(default=1.0, gt=0)
    """Extended over original context."""
    original_context: PositiveInt | None = None
    """Context of the training before the extension."""
    alpha: float | None = Field(default=None, gt=0)
    """Factor of the base for `dynamic` (Hunyuan)."""
    beta_fast: float = Field(default=32.0, gt=0)
    """Rotations within the original context above which `yarn` keeps a dimension."""
    beta_slow: float = Field(default=1.0, gt=0)
    """Rotations within the original context below which `yarn` interpolates a dimension fully."""
    mscale: float | None = None
    """Coefficient in the scale that `yarn` gives queries and keys."""
    mscale_all_dim: float | None = None
    """Coefficient in the scale that `yarn` gives the softmax."""
    truncate: bool = True
    """Round the ends of yarn's ramp to whole dimensions."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Original context over the wavelength above which `llama3` scales by `factor`."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Original context over the wavelength below which `llama3` keeps a frequency."""
    short_factor: tuple[float, ...] = ()
    """Factors per pair of `longrope` within the original context."""
    long_factor: tuple[float, ...] = ()
    """Factors per pair of `longrope` beyond the original context."""


class Rope(Terse):
    """Rotary position embedding (arXiv 2104.09864)."""

    theta: float = Field(default=10_000.0, gt=0)
    """Base of the frequencies."""
    partial: float = Field(default=1.0, gt=0, le=1)
    """Fraction of a head that is rotated, its first dimensions."""
    interleaved: bool = False
    """Pairs are neighboring dimensions, as in DeepSeek and Llama 4; false: the two halves."""
    scaling: RopeScaling | None = None
    """Extension to longer contexts."""

    def rotated(self, head_dim: int) -> int:
        """Rotated dimensions of a head."""
        return int(head_dim * self.partial)
