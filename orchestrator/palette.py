"""The colors of blocks, provenances, verdicts and charts, in the terminal and on pages."""

from typing import NamedTuple

from ..profilers.report import Provenance
from ..search_space.pattern import SYMBOLS


class Shades(NamedTuple):
    """One color as a light and as a dark page show it."""

    light: str
    dark: str


class ProvenanceColor(NamedTuple):
    """The color of a provenance: its name in a terminal, its hex value on a page."""

    terminal: str
    page: str


PROVENANCES: dict[Provenance, ProvenanceColor] = {
    "measured": ProvenanceColor("green", "#2f9e44"),
    "composed": ProvenanceColor("cyan", "#1098ad"),
    "estimated": ProvenanceColor("yellow", "#e0a800"),
    "counted": ProvenanceColor("blue", "#3b6fd8"),
}
# In a terminal: whether memory fits, whether a count is that of the reference.
VERDICTS = {"fits": "green", "tight": "yellow", "does not fit": "red"}
AGREEMENTS = {"equal": "green", "DIFFERS": "red", "": ""}

# Of pages; text and ink (text on a block) as in .streamlit/config.toml.
TEXT = Shades("#1d2330", "#e6e9f0")
INK = Shades("#ffffff", "#12151c")
GRAY, FAINT_GRAY, ACCENT = "#8b93a3", "rgba(139, 147, 163, 0.6)", "#f2542d"
COLOR_SCALE = "Viridis"

# Warm for attention, cool for recurrence, gray and violet for feed-forwards.
_CHOSEN = {
    "*": Shades("#d9480f", "#ff8f4d"),
    "W": Shades("#c98a12", "#f5c063"),
    "C": Shades("#a8701a", "#e0ab52"),
    "L": Shades("#b8255f", "#f0719c"),
    "S": Shades("#c2255c", "#f783ac"),
    "Z": Shades("#9c36b5", "#da77f2"),
    "&": Shades("#8a5a44", "#c99a82"),
    "@": Shades("#a03b3b", "#e08585"),
    "M": Shades("#0c8599", "#3bc9db"),
    "m": Shades("#087f7a", "#4fd1c5"),
    "G": Shades("#2f5fd0", "#7ea2ff"),
    "K": Shades("#1c7ed6", "#74c0fc"),
    "T": Shades("#2b8a3e", "#69db7c"),
    "R": Shades("#5c940d", "#a9e34b"),
    "U": Shades("#0b7285", "#66d9e8"),
    "Y": Shades("#3d8f6f", "#7fd1ae"),
    "D": Shades("#5f3dc4", "#b197fc"),
    "N": Shades("#495057", "#adb5bd"),
    "-": Shades("#7a8290", "#8b93a3"),
    "E": Shades("#7048e8", "#a48bff"),
    "r": Shades("#868e96", "#adb5bd"),
    ".": Shades("#ced4da", "#495057"),
}
_GOLDEN_ANGLE = 137.508  # degrees: hues of successive letters lie far apart


def _by_hue(letter: str) -> Shades:
    hue = ord(letter) * _GOLDEN_ANGLE % 360
    return Shades(f"hsl({hue:.0f}, 60%, 42%)", f"hsl({hue:.0f}, 65%, 70%)")


BLOCKS = {letter: _CHOSEN.get(letter) or _by_hue(letter) for letter in SYMBOLS}


def block_color(symbol: str, *, dark: bool) -> str:
    """The color of a block by the letter of its symbol; every letter has one."""
    shades = BLOCKS.get(symbol[0]) or _by_hue(symbol[0])
    return shades.dark if dark else shades.light
