"""Search spaces: draws, rejections, and the messages for invalid files."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_spaces import BAD

from archfront.search_space.accounting import flops_per_token
from archfront.search_space.check import check_space, load_space
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.domain import Domain, draw_at_random
from archfront.search_space.space import Rejected, SearchSpace, invalid_fp8_shape, sample

EXAMPLES = Path(__file__).parents[2] / "examples"
SPACES = [EXAMPLES / "hybrid-1b.yaml", EXAMPLES / "tiny.yaml"]


def space_of(text: str) -> SearchSpace:
    return check_space(parse_document(text, source="space.yaml"))


def first_choices(wanted: dict[str, object]) -> Callable[[str, Domain], object]:
    return lambda name, domain: wanted.get(name, domain.values[0])


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_most_draws_of_a_shipped_space_are_legal_and_within_budget(path: Path) -> None:
    space = load_space(path)
    drawn = sample(space, 60, seed=1)
    assert len(drawn.legal) > 30
    assert len({candidate.key for candidate in drawn.legal}) > 20
    budget = space.file.budget
    assert budget is not None
    if budget.quantity == "flops_per_token":
        for candidate in drawn.legal:
            assert flops_per_token(candidate, budget.context) == pytest.approx(
                budget.value, rel=0.02
            )
    assert not any(invalid_fp8_shape(candidate) for candidate in drawn.legal)


def test_a_choice_exists_only_while_its_block_is_used(tiny_space: str) -> None:
    space, asked = space_of(tiny_space), []
    random_source = random.Random(0)

    def choose(name: str, domain: Domain) -> object:
        asked.append(name)
        fixed = {"layout.ratio": 1, "layout.attention": "L", "layout.feedforward": "-"}
        return fixed.get(name, draw_at_random(domain, random_source))

    space.draw(choose)
    assert asked == [
        "layout.ratio",
        "layout.attention",
        "layout.feedforward",
        "blocks.L.kv_lora_rank",
        "precision.fp8",
    ]


def test_a_condition_hides_a_choice(tiny_space: str) -> None:
    shown = "placement: {choices: [even, middle, last], when: {layout.ratio: [0.5]}}"
    space = space_of(tiny_space.replace("placement: {choices: [even, middle, last]}", shown))
    at_half = space.draw(first_choices({"layout.ratio": 0.5, "layout.placement": "last"}))
    at_quarter = space.draw(first_choices({"layout.ratio": 0.25, "layout.placement": "last"}))
    assert at_half.pattern == "(M-)x4(*-)x4"
    assert at_quarter.pattern == "(M-M-M-*-)x2"


def test_a_violated_constraint_is_reported_with_its_values(tiny_space: str) -> None:
    wanted = {"layout.feedforward": "E", "blocks.E.n_experts": 8, "blocks.E.top_k": 4}
    with pytest.raises(Rejected, match=r"moe.top_k \* 4 <= moe.n_experts is violated by 16 and 8"):
        space_of(tiny_space).draw(first_choices(wanted))


def test_the_free_width_is_divided_among_experts(tiny_space: str) -> None:
    chosen = {"layout.feedforward": "E", "blocks.E.n_experts": 32, "blocks.E.n_shared": 1}
    widths = [
        space_of(tiny_space)
        .draw(first_choices(chosen | {"blocks.E.top_k": k}))
        .blocks["E"]
        .d_expert  # pyright: ignore[reportAttributeAccessIssue]
        for k in (1, 2, 4)
    ]
    assert widths[0] * 2 == pytest.approx(widths[2] * 5, rel=0.15)
    assert widths[0] > widths[1] > widths[2]


def test_fp8_shapes_must_divide_by_16(tiny_space: str) -> None:
    odd = tiny_space.replace("fp8: {choices: [[],", "fp8: {choices: [[mixer.in],")
    odd = odd.replace(
        "{kind: mamba2, heads: 16, head_dim: 64,", "{kind: mamba2, heads: 4, head_dim: 64,"
    )
    with pytest.raises(
        Rejected, match=r"divisible by 16, got in_proj.weight \[\d+, 512\] in mixer.in"
    ):
        space_of(odd).draw(first_choices({"layout.ratio": 0.25}))


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_space_is_reported_with_line_and_reason(tiny_space: str, case: str) -> None:
    old, new, message = BAD[case]
    assert old in tiny_space
    with pytest.raises(InputError, match=message) as error:
        check_space(parse_document(tiny_space.replace(old, new, 1), source="s.yaml"))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.yaml", "no such file"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: write(folder, b""), "the file is empty"),
        (lambda folder: write(folder, b"- a\n- b\n"), "expected a mapping of fields, got list"),
        (lambda folder: write(folder, b"\xff\xfe\x00"), "must be UTF-8"),
        (lambda folder: write(folder, b"a" * (1 << 21)), "at most 1048576 bytes"),
        (lambda folder: write(folder, b"[" * 5000), "not valid YAML"),
    ],
)
def test_a_file_that_is_no_space_is_reported(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_space(make(tmp_path))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "space.yaml"
    path.write_bytes(content)
    return path


def test_the_pattern_may_be_a_choice(small_space: str) -> None:
    rule = 'layout: {layers: 2, ratio: 1, attention: "*", feedforward: "-"}'
    listed = 'pattern: {choices: ["(*-)x2", "*-*-*-"]}'
    space = space_of(small_space.replace(rule, listed))
    patterns = {candidate.pattern for candidate in sample(space, 20, seed=0).legal}
    assert patterns == {"*-*-", "*-*-*-"}
    with pytest.raises(InputError, match=r"space.yaml:5: architecture.pattern: .*never closed"):
        space_of(small_space.replace(rule, 'pattern: "(*-"'))
