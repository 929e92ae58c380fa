"""The layers of an architecture as a picture: a column a layer, mixers above, feed-forwards below."""

from collections import Counter
from html import escape

from ..search_space.accounting import located_weights
from ..search_space.architecture import Architecture
from ..search_space.pattern import SYMBOLS, branches, is_feed_forward, units

# Warm for attention, cool for recurrence; on a light and on a dark page.
COLOURS = {
    "*": ("#d9480f", "#ff8f4d"),
    "W": ("#c98a12", "#f5c063"),
    "C": ("#a8701a", "#e0ab52"),
    "L": ("#b8255f", "#f0719c"),
    "S": ("#c2255c", "#f783ac"),
    "Z": ("#9c36b5", "#da77f2"),
    "&": ("#8a5a44", "#c99a82"),
    "@": ("#a03b3b", "#e08585"),
    "M": ("#0c8599", "#3bc9db"),
    "m": ("#087f7a", "#4fd1c5"),
    "G": ("#2f5fd0", "#7ea2ff"),
    "K": ("#1c7ed6", "#74c0fc"),
    "T": ("#2b8a3e", "#69db7c"),
    "R": ("#5c940d", "#a9e34b"),
    "U": ("#0b7285", "#66d9e8"),
    "Y": ("#3d8f6f", "#7fd1ae"),
    "D": ("#5f3dc4", "#b197fc"),
    "N": ("#495057", "#adb5bd"),
    "-": ("#7a8290", "#8b93a3"),
    "E": ("#7048e8", "#a48bff"),
    "r": ("#868e96", "#adb5bd"),
    ".": ("#ced4da", "#495057"),
}
WIDTH, WIDEST = 1240, 46  # of the picture, of a layer at most; pixels
BLOCK, GAP, BAR, ROW = 30, 3, 3, 42
LETTER = 7.0


def strip(architecture: Architecture, *, dark: bool) -> str:
    """The picture as SVG; a bar under a block says that some of its matrices are in FP8."""
    text, ink = ("#e6e9f0", "#12151c") if dark else ("#1d2330", "#ffffff")
    in_fp8 = {
        placed.sub_block for placed in located_weights(architecture) if placed.format == "fp8"
    }
    layers = units(architecture.symbols)
    pitch = max(2 * GAP, min(WIDEST, WIDTH // len(layers)))

    def block(group: str, x: float, y: float, width: float) -> str:
        """One sub-block; the branches of a parallel group stand above each other."""
        symbols = branches(group)
        high = BLOCK / len(symbols)
        boxes = "".join(
            _box(x, y + row * high, width, high, COLOURS[symbol[0]][dark])
            for row, symbol in enumerate(symbols)
        )
        if len(symbols) > 1 or width < len(group) * 10:
            return boxes
        return boxes + _text(group, x + width / 2, y, ink, "middle")

    drawn: list[str] = []
    index = 0
    for column, layer in enumerate(layers):
        for symbol in layer:
            x, y = column * pitch, ROW * is_feed_forward(symbol)
            drawn.append(block(symbol, x, y, pitch - GAP))
            if index in in_fp8:
                drawn.append(_box(x, y + BLOCK + GAP, pitch - GAP, BAR, text))
            index += 1
    x, y = 0.0, 2 * ROW + 8
    for symbol, times in Counter(architecture.symbols).items():
        meaning = " | ".join(SYMBOLS[branch[0]] for branch in branches(symbol))
        label = f"{times} × {meaning}"
        drawn += [block(symbol, x, y, BLOCK), _text(label, x + BLOCK + 8, y, text)]
        x += BLOCK + 32 + LETTER * len(label)
    if in_fp8 - {None}:
        label = "some matrices in FP8"
        drawn += [_box(x, y + BLOCK / 2, BLOCK, BAR, text), _text(label, x + BLOCK + 8, y, text)]
        x += BLOCK + 32 + LETTER * len(label)
    width, height = max(x, len(layers) * pitch), y + BLOCK
    size = f'width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(drawn)}</svg>'


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{min(height / 2, 4)}" '
        f'fill="{fill}"/>'
    )


def _text(text: str, x: float, y: float, fill: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y + BLOCK / 2}" dy="0.35em" font-family="sans-serif" font-size="14" '
        f'text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
    )
