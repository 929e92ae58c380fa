"""The layers of an architecture as SVG: one column per layer, mixers above feed-forwards."""

from collections import Counter
from html import escape

from ..orchestrator.palette import INK, TEXT, block_color
from ..search_space.accounting import located_weights
from ..search_space.architecture import Architecture
from ..search_space.pattern import SYMBOLS, branches, is_feed_forward, units

# Pixels: the width of the diagram, the widest column, a block, and what is around blocks.
WIDTH, MAX_COLUMN = 1240, 46
BLOCK, GAP, FP8_BAR, ROW = 30, 3, 3, 42
CHARACTER = 7.0


def layer_diagram(architecture: Architecture, *, dark: bool) -> str:
    """The diagram with a legend; a bar below a block means that some of its matrices are FP8."""
    text, ink = (TEXT.dark, INK.dark) if dark else (TEXT.light, INK.light)
    in_fp8 = {
        weight.sub_block for weight in located_weights(architecture) if weight.format == "fp8"
    }
    layers = units(architecture.symbols)
    pitch = max(2 * GAP, min(MAX_COLUMN, WIDTH // len(layers)))

    def block(group: str, x: float, y: float, width: float) -> str:
        """One sub-block; the branches of a parallel group are drawn on top of each other."""
        symbols = branches(group)
        height = BLOCK / len(symbols)
        boxes = "".join(
            _box(x, y + row * height, width, height, block_color(symbol, dark=dark))
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
                drawn.append(_box(x, y + BLOCK + GAP, pitch - GAP, FP8_BAR, text))
            index += 1
    x, y = 0.0, 2 * ROW + 8
    for symbol, times in Counter(architecture.symbols).items():
        kinds = " | ".join(SYMBOLS[branch[0]] for branch in branches(symbol))
        label = f"{times} × {kinds}"
        drawn += [block(symbol, x, y, BLOCK), _text(label, x + BLOCK + 8, y, text)]
        x += BLOCK + 32 + CHARACTER * len(label)
    if in_fp8 - {None}:
        label = "some matrices in FP8"
        drawn += [
            _box(x, y + BLOCK / 2, BLOCK, FP8_BAR, text),
            _text(label, x + BLOCK + 8, y, text),
        ]
        x += BLOCK + 32 + CHARACTER * len(label)
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
