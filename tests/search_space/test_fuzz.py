"""Any input is read or rejected with one line, never a traceback."""

import string
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from archfront.search_space import published
from archfront.search_space.architecture import Architecture, architecture_from, to_yaml
from archfront.search_space.blocks.kinds import KINDS
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.pattern import SYMBOLS, PatternError, compress, unroll

symbol = st.builds(
    "".join, st.tuples(st.sampled_from(sorted(SYMBOLS)), st.sampled_from(["", "1", "12"]))
)
group = symbol | st.lists(symbol, min_size=2, max_size=3).map(lambda s: f"[{'|'.join(s)}]")
notation = st.text(alphabet=[*SYMBOLS, *"()[]|x0129 "], max_size=40)
scalar = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8)
)
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
some_block = st.fixed_dictionaries({"kind": st.sampled_from([*KINDS, "nothing"])}).flatmap(
    lambda head: st.dictionaries(
        st.sampled_from(sorted(KINDS[head["kind"]].model_fields) if head["kind"] in KINDS else ["a"]), scalar
    ).map(lambda fields: fields | head)
)  # fmt: skip


@given(st.lists(group, min_size=1, max_size=60).map(tuple))
def test_a_compressed_pattern_unrolls_to_the_same_sub_blocks(groups: tuple[str, ...]) -> None:
    assert unroll(compress(groups)) == groups


@given(notation)
def test_a_pattern_unrolls_or_is_rejected_in_one_line(pattern: str) -> None:
    rejected = ""
    try:
        assert unroll(compress(groups := unroll(pattern))) == groups
    except PatternError as error:
        rejected = str(error)
    assert len(rejected.splitlines()) <= 1


@given(st.text(max_size=200))
def test_any_text_is_a_document_or_is_rejected(text: str) -> None:
    _reads_back_or_is_rejected(text)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(sorted(Architecture.model_fields)), anything),
    st.dictionaries(symbol, some_block | scalar, max_size=3),
)
def test_any_fields_are_an_architecture_or_are_rejected(fields: dict, blocks: dict) -> None:
    text = yaml.safe_dump(
        {"d_model": 64, "vocab_size": 256, "pattern": "*-", **fields, "blocks": blocks}
    )
    _reads_back_or_is_rejected(text)


@settings(max_examples=60)
@given(st.data())
def test_a_published_model_with_one_field_changed_reads_back_or_is_rejected(data: Any) -> None:
    plain = published.entry(data.draw(st.sampled_from(published.names()))).architecture.plain()
    target = data.draw(st.sampled_from([plain, *plain["blocks"].values()]))
    field = data.draw(st.sampled_from(sorted(target)))
    target[field] = data.draw(anything)
    _reads_back_or_is_rejected(yaml.safe_dump(plain))


def _reads_back_or_is_rejected(text: str) -> None:
    rejected = ""
    try:
        made = architecture_from(parse_document(text, source="x.yaml"))
        again = architecture_from(parse_document(to_yaml(made.plain()), source="y.yaml"))
        assert again.key == made.key
    except InputError as error:
        rejected = str(error)
    assert all(line.startswith("x.yaml:") for line in rejected.splitlines())
