"""The layers of an architecture as a picture: a column a layer, mixers above, feed-forwards below."""

from collections import Counter
from html import escape

from ..search_space.accounting import placed_weights
from ..search_space.architecture import Architecture
from ..search_space.pattern import FEED_FORWARD, SYMBOLS, units

# Warm for attention, cool for recurrence; on a light and on a dark page.
COLOURS = {
    "*": ("#d9480f", "#ff8f4d"),
    "W": ("#c98a12", "#f5c063"),
    "L": ("#b8255f", "#f0719c"),
    "M": ("#0c8599", "#3bc9db"),
    "G": ("#2f5fd0", "#7ea2ff"),
    "-": ("#7a8290", "#8b93a3"),
    "E": ("#7048e8", "#a48bff"),
}
WIDTH, WIDEST = 1240, 46  # of the picture, of a layer at most; pixels
BLOCK, GAP, BAR, ROW = 30, 3, 3, 42
LETTER = 7.0


def strip(architecture: Architecture, *, dark: bool) -> str:
    """The picture as SVG; a bar under a block says that some of its matrices are in FP8."""
    text, ink = ("#e6e9f0", "#12151c") if dark else ("#1d2330", "#ffffff")
    in_fp8 = {placed.sub_block for placed in placed_weights(architecture) if placed.format == "fp8"}
    layers = units(architecture.symbols)
    pitch = max(2 * GAP, min(WIDEST, WIDTH // len(layers)))

    def block(symbol: str, x: float, y: float, width: float) -> str:
        fill = COLOURS[symbol[0]][dark]
        letter = _text(symbol, x + width / 2, y, ink, "middle") if width >= len(symbol) * 10 else ""
        return _box(x, y, width, BLOCK, fill) + letter

    drawn: list[str] = []
    index = 0
    for column, layer in enumerate(layers):
        for symbol in layer:
            x, y = column * pitch, ROW * (symbol[0] in FEED_FORWARD)
            drawn.append(block(symbol, x, y, pitch - GAP))
            if index in in_fp8:
                drawn.append(_box(x, y + BLOCK + GAP, pitch - GAP, BAR, text))
            index += 1
    x, y = 0.0, 2 * ROW + 8
    for symbol, times in Counter(architecture.symbols).items():
        label = f"{times} × {SYMBOLS[symbol[0]]}"
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
