"""The layer notation: parsing, errors, and round trips."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archfront.search_space.pattern import SYMBOLS, PatternError, compress, units, unroll

SYMBOL = st.sampled_from(["*", "W", "W1", "L", "M", "G", "-", "E", "E2", "[*|M]"])


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [
        ("*-", ("*", "-")),
        ("(GE)x2*E", ("G", "E", "G", "E", "*", "E")),
        ("Mx3", ("M", "M", "M")),
        ("((M-)x2*-)x2", ("M", "-", "M", "-", "*", "-") * 2),
        ("W1E1", ("W1", "E1")),
        ("W1x2", ("W1", "W1")),
        ("[*|M]x2-", ("[*|M]", "[*|M]", "-")),
        (" ( * - ) x2 ", ("*", "-", "*", "-")),
    ],
)
def test_unroll_reads_the_notation(pattern: str, blocks: tuple[str, ...]) -> None:
    assert unroll(pattern) == blocks


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("Q", "unknown symbol 'Q' at column 1"),
        ("(*-", r"'\(' at column 1 is never closed"),
        ("*)", r"'\)' closes nothing at column 2"),
        ("*x0", "at least 1, got x0 at column 2"),
        ("x3", "'x3' follows nothing"),
        ("()x2", "empty group at column 1"),
        ("[*|", r"'\[' at column 1 is never closed"),
        ("[*]", "two branches"),
        ("[*-]", r"separated by '\|'"),
        ("", "at least one sub-block"),
        ("(*-)x99999999999", "more than 4096"),
        ("((((*x99)x99)x99)x99)", "more than 4096"),
    ],
)
def test_an_invalid_pattern_is_reported_with_its_column(pattern: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        unroll(pattern)


@pytest.mark.parametrize(
    ("blocks", "pattern"),
    [
        (("G", "E") * 4 + ("*", "E"), "(GE)x4*E"),
        ((("G", "E") * 3 + ("*", "E")) * 12, "(GEGEGE*E)x12"),
        (("L", "-") * 3 + ("L", "E") * 58, "L-L-L-(LE)x58"),
        (("M",) * 7, "Mx7"),
    ],
)
def test_compress_writes_what_a_person_would(blocks: tuple[str, ...], pattern: str) -> None:
    assert compress(blocks) == pattern


@given(st.lists(SYMBOL, min_size=1, max_size=40))
def test_printing_and_parsing_agree(blocks: list[str]) -> None:
    assert unroll(compress(tuple(blocks))) == tuple(blocks)


@given(st.text(alphabet="*WLMGE-x0123456789()[]| Q", max_size=40))
def test_any_text_is_read_or_rejected(text: str) -> None:
    with contextlib.suppress(PatternError):
        assert unroll(text)


def test_a_layer_is_a_mixer_with_its_feed_forward() -> None:
    assert units(("M", "-", "M", "*", "-", "-")) == (("M", "-"), ("M",), ("*", "-"), ("-",))


def test_every_symbol_of_the_table_is_read() -> None:
    assert unroll("".join(SYMBOLS)) == tuple(SYMBOLS)
