"""The layer notation: one symbol per residual sub-block, as in `(GEGEGE*E)x12`.

    pattern := item+
    item    := SYMBOL[xN] | (pattern)[xN] | [SYMBOL|SYMBOL...][xN]
    SYMBOL  := a letter of `SYMBOLS`, then optional digits that name a variant (`W1`)

Every pattern of Nemotron-H is valid. White space is ignored.
"""

import re
from functools import lru_cache

MIXERS = {
    "*": "global attention",
    "W": "sliding-window attention",
    "C": "chunked attention",
    "L": "multi-head latent attention",
    "S": "sparse selected attention",
    "Z": "compressed-KV attention",
    "&": "cross attention",
    "M": "Mamba-2",
    "m": "Mamba-1",
    "G": "gated DeltaNet",
    "K": "Kimi Delta Attention",
    "T": "lightning, retention, GLA",
    "R": "RWKV-7 time mix",
    "U": "RG-LRU",
    "D": "test-time training",
    "N": "GRU or LSTM",
    "Y": "gated short convolution",
}
FEED_FORWARDS = {
    "-": "dense feed-forward",
    "E": "mixture of experts",
    "r": "RWKV channel mix",
}
SYMBOLS = MIXERS | FEED_FORWARDS | {".": "no-op", "@": "shared-weight block"}
SYMBOL = "[" + "".join(SYMBOLS).replace("-", r"\-") + "][0-9]*"  # as a regular expression
MAX_SUB_BLOCKS = 4096
MAX_LENGTH = 16_384  # characters: every sub-block written out, with a variant
MAX_DEPTH = 16  # groups within groups

_TOKEN = re.compile(rf"(?P<symbol>{SYMBOL})|(?P<times>x[0-9]+)|(?P<mark>[()\[\]|])")


class PatternError(ValueError):
    """Invalid pattern; the message gives the fault and the column."""


@lru_cache(maxsize=4096)
def unroll(pattern: str) -> tuple[str, ...]:
    """The sub-blocks of `pattern` in order; a parallel group stays one entry, `"[*|M]"`.

    Raises PatternError for an unknown symbol, an unclosed bracket, a count of zero, an empty
    group, or more than `MAX_SUB_BLOCKS` sub-blocks.
    """
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"a pattern has at most {MAX_LENGTH} characters, got {len(pattern)}")
    tokens = _tokens(pattern)
    blocks, position = _items(tokens, 0, pattern)
    if position < len(tokens):
        raise PatternError(
            f"pattern {_shown(pattern)}: ')' closes nothing at column {tokens[position][1]}"
        )
    if not blocks:
        raise PatternError(f"pattern must name at least one sub-block, got {_shown(pattern)}")
    return tuple(blocks)


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else f"{pattern[:59]}…")


def _tokens(pattern: str) -> list[tuple[str, int]]:
    tokens, column = [], 0
    while column < len(pattern):
        if pattern[column].isspace():
            column += 1
            continue
        match = _TOKEN.match(pattern, column)
        if match is None:
            raise PatternError(
                f"pattern {_shown(pattern)}: unknown symbol {pattern[column]!r} "
                f"at column {column + 1}; known: {' '.join(SYMBOLS)}"
            )
        tokens.append((match.group(), column + 1))
        column = match.end()
    return tokens


def _items(
    tokens: list[tuple[str, int]], position: int, pattern: str, depth: int = 0
) -> tuple[list[str], int]:
    """Read items up to the end or an unopened `)`; return the sub-blocks and the next position."""
    blocks: list[str] = []
    while position < len(tokens) and tokens[position][0] != ")":
        token, column = tokens[position]
        if token == "(":
            if depth == MAX_DEPTH:
                raise PatternError(
                    f"a pattern nests at most {MAX_DEPTH} groups, got more at column {column}"
                )
            group, position = _items(tokens, position + 1, pattern, depth + 1)
            if position == len(tokens):
                raise PatternError(
                    f"pattern {_shown(pattern)}: '(' at column {column} is never closed"
                )
            if not group:
                raise PatternError(f"pattern {_shown(pattern)}: empty group at column {column}")
        elif token == "[":
            branch, position = _parallel(tokens, position, pattern)
            group = [branch]
        elif token[0] in SYMBOLS:
            group = [token]
        else:
            raise PatternError(
                f"pattern {_shown(pattern)}: {token!r} follows nothing at column {column}"
            )
        position += 1
        if position < len(tokens) and tokens[position][0].startswith("x"):
            times, column = tokens[position]
            count = int(times[1:]) if len(times) < 6 else MAX_SUB_BLOCKS + 1
            if count == 0:
                raise PatternError(
                    f"pattern {_shown(pattern)}: a count must be at least 1, "
                    f"got x0 at column {column}"
                )
            if count * len(group) > MAX_SUB_BLOCKS:
                raise PatternError(
                    f"pattern has more than {MAX_SUB_BLOCKS} sub-blocks at column {column}: {times}"
                )
            group = group * count
            position += 1
        blocks += group
        if len(blocks) > MAX_SUB_BLOCKS:
            raise PatternError(f"pattern has more than {MAX_SUB_BLOCKS} sub-blocks")
    return blocks, position


def _parallel(tokens: list[tuple[str, int]], position: int, pattern: str) -> tuple[str, int]:
    """Read `[a|b]`; return it as one entry and the position of its `]`."""
    start, branches = tokens[position][1], []
    while True:
        position += 1
        if position + 1 >= len(tokens):
            raise PatternError(f"pattern {_shown(pattern)}: '[' at column {start} is never closed")
        symbol, column = tokens[position]
        if symbol[0] not in SYMBOLS:
            raise PatternError(
                f"pattern {_shown(pattern)}: a branch must be one symbol, "
                f"got {symbol!r} at column {column}"
            )
        branches.append(symbol)
        position += 1
        separator, column = tokens[position]
        if separator == "]":
            break
        if separator != "|":
            raise PatternError(
                f"pattern {_shown(pattern)}: branches are separated by '|', "
                f"got {separator!r} at column {column}"
            )
    if len(branches) < 2:
        raise PatternError(
            f"pattern {_shown(pattern)}: a parallel group needs two branches at column {start}"
        )
    return f"[{'|'.join(branches)}]", position


def compress(blocks: tuple[str, ...]) -> str:
    """The shortest pattern that unrolls to `blocks`, with groups of whole layers.

    Of equally short patterns the one with fewer groups.
    """
    return _spell(units(blocks))


@lru_cache(maxsize=4096)
def _spell(layers: tuple[tuple[str, ...], ...]) -> str:
    best = [""] * (len(layers) + 1)  # best[i] spells layers[i:]
    for start in reversed(range(len(layers))):
        best[start] = "".join(layers[start]) + best[start + 1]
        for size in range(1, (len(layers) - start) // 2 + 1):
            unit = layers[start : start + size]
            if layers[start + size : start + 2 * size] != unit:
                continue
            inner = unit[0][0] if unit == ((unit[0][0],),) else f"({_spell(unit)})"
            times = 1
            while layers[start + times * size : start + (times + 1) * size] == unit:
                times += 1
                text = f"{inner}x{times}{best[start + times * size]}"
                if len(text) < len(best[start]):
                    best[start] = text
    return best[0]


def branches(group: str) -> tuple[str, ...]:
    """The symbols of one sub-block: several in a parallel group, else one."""
    return tuple(group.strip("[]").split("|"))


def is_feed_forward(group: str) -> bool:
    """Whether all branches of a sub-block are feed-forwards."""
    return all(symbol[0] in FEED_FORWARDS for symbol in branches(group))


def units(blocks: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Layers as most papers count them: a mixer with the feed-forward after it.

    Any other mixer or feed-forward is a layer of its own.
    """
    layers: list[tuple[str, ...]] = []
    for block in blocks:
        follows = layers and len(layers[-1]) == 1 and not is_feed_forward(layers[-1][0])
        if follows and is_feed_forward(block):
            layers[-1] = (layers[-1][0], block)
        else:
            layers.append((block,))
    return tuple(layers)
