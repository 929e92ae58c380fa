"""Layouts: patterns by placement."""

import pytest
from pydantic import ValidationError

from archfront.search_space.layout import Layout


@pytest.mark.parametrize(
    ("ratio", "placement", "pattern"),
    [
        (0.25, "even", "(G-G-G-*-)x2"),
        (0.25, "first", "*-*-(G-)x6"),
        (0.25, "middle", "G-G-G-*-*-G-G-G-"),
        (0.25, "last", "(G-)x6*-*-"),
        (0, "even", "(G-)x8"),
        (1, "first", "(*-)x8"),
        (0.4, "even", "G-*-(G-G-*-)x2"),
    ],
)
def test_a_layout_writes_its_pattern(ratio: float, placement: str, pattern: str) -> None:
    layout = Layout(
        layers=8, ratio=ratio, placement=placement, attention="*", linear="G", feedforward="-"
    )  # pyright: ignore[reportArgumentType]
    assert layout.pattern() == pattern


def test_a_mixed_layout_needs_both_mixers() -> None:
    with pytest.raises(ValidationError, match="linear must name a mixer, since 4 of 8"):
        Layout(layers=8, ratio=0.5, attention="*")


def test_a_feed_forward_is_no_mixer() -> None:
    with pytest.raises(ValidationError, match="must be a mixer's symbol, got '-'"):
        Layout(layers=8, ratio=1, attention="-")
