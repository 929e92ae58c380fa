"""The figures and the layer diagram, checked by their data."""

import pandas as pd
import pytest

from archfront.dashboard import charts
from archfront.dashboard.layer_diagram import layer_diagram
from archfront.dashboard.queries import Quantity
from archfront.orchestrator.palette import BLOCKS, block_color
from archfront.search_space.architecture import Architecture
from archfront.search_space.pattern import SYMBOLS

AXES = {
    "x": Quantity(label="decode_ms", unit="ms", better="lower", source="estimated · ±9%"),
    "y": Quantity(label="recall", unit="", better="higher", source="measured · ±2%"),
    "color": Quantity(label="weight_gib", unit="GiB", better="lower", source="counted · exact"),
}


@pytest.fixture
def points() -> pd.DataFrame:
    """Three on the front, the second its knee; one dominated; one that violates a constraint."""
    frame = pd.DataFrame(
        {
            "number": range(5),
            "key": list("abcde"),
            "pattern": "(M-)x8",
            "on_front": [True, True, True, False, False],
            "knee": [False, True, False, False, False],
            "feasible": [True, True, True, True, False],
            "x_value": [30.0, 10.0, 1.0, 20.0, 40.0],
            "y_value": [0.9, 0.8, 0.1, 0.5, 0.95],
            "color_value": [4.0, 2.0, 1.0, 3.0, 5.0],
        }
    )
    for axis in ("x", "y", "color"):
        frame[f"{axis}_low"] = 0.9 * frame[f"{axis}_value"]
        frame[f"{axis}_high"] = 1.2 * frame[f"{axis}_value"]
    return frame


def drawn(points: pd.DataFrame, *, logs=frozenset(), chosen=None, connected=False):
    figure = charts.front(points, AXES, set(logs), chosen=chosen, connected=connected)
    return figure, {trace.name: trace for trace in figure.data}


def test_each_candidate_is_drawn_once_in_its_group(points):
    _, traces = drawn(points)
    keys = {name: [row[0] for row in trace.customdata] for name, trace in list(traces.items())[:3]}
    assert keys == {"dominated": ["d"], "violates a constraint": ["e"], "front": ["c", "b", "a"]}


def test_the_knee_is_a_labeled_diamond(points):
    figure, traces = drawn(points)
    assert list(traces["front"].marker.symbol) == ["circle", "diamond", "circle"]
    assert [(note.x, note.y) for note in figure.layout.annotations] == [(10.0, 0.8)]


def test_on_a_logarithmic_axis_the_knee_label_is_placed_by_its_logarithm(points):
    figure, _ = drawn(points, logs={"x", "color"})
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.annotations[0].x == 1.0


def test_axis_titles_show_unit_direction_provenance_and_error(points):
    figure, _ = drawn(points)
    assert figure.layout.xaxis.title.text == "decode_ms ↓ [ms]<br><sup>estimated · ±9%</sup>"
    assert figure.layout.yaxis.title.text == "recall ↑<br><sup>measured · ±2%</sup>"


def test_the_front_has_error_bars(points):
    _, traces = drawn(points)
    assert traces["front"].error_x.array == pytest.approx([0.2, 2.0, 6.0])
    assert traces["front"].error_x.arrayminus == pytest.approx([0.1, 1.0, 3.0])


def test_an_unknown_interval_has_no_error_bar(points):
    points[["x_low", "x_high"]] = float("nan")
    _, traces = drawn(points)
    assert not traces["front"].error_x.visible


def test_the_front_is_a_line_only_if_connected(points):
    assert drawn(points)[1]["front"].mode == "markers"
    front = drawn(points, connected=True)[1]["front"]
    assert (front.mode, front.line.shape) == ("lines+markers", "hv")


def test_the_chosen_candidate_has_a_ring(points):
    _, traces = drawn(points, chosen="d")
    assert list(traces["chosen"].x) == [20.0]


def test_a_large_background_is_thinned_and_the_front_is_not(points):
    crowd = pd.concat([points, *[points.query("not on_front")] * 500], ignore_index=True)
    _, traces = drawn(crowd)
    assert len(traces["dominated"].x) == 1
    assert len(traces["front"].x) == 3


def test_markup_in_a_label_is_escaped(points):
    axes = {**AXES, "x": Quantity(label="<a href='/'>", unit="", better=None, source="<b>")}
    figure = charts.front(points, axes, set(), chosen=None, connected=False)
    assert "<a" not in figure.layout.xaxis.title.text
    assert "<a" not in figure.data[2].hovertemplate


def test_hypervolume_is_drawn_over_completed_trials():
    steps = pd.DataFrame({"number": [0, 2], "front_size": [1, 2], "hypervolume": [0.1, 0.3]})
    (line,) = charts.hypervolume(steps).data
    assert list(line.x) == [1, 2]
    assert list(line.y) == [0.1, 0.3]


@pytest.mark.parametrize("dark", [False, True])
def test_the_layer_diagram_draws_every_block_and_its_format(dark: bool):
    architecture = Architecture.model_validate(
        {
            "d_model": 64,
            "vocab_size": 512,
            "pattern": "(W1-)x40",
            "blocks": {
                "W1": {"kind": "attn", "heads": 2, "kv_heads": 1, "head_dim": 32, "window": 128},
                "-": {"kind": "ffn", "width": 128},
            },
            "precision": {"fp8": ["ffn.up"], "keep_last_layers": 1},
        }
    )
    diagram = layer_diagram(architecture, dark=dark)
    legend, bars = 3, 39
    assert diagram.count("<rect") == 80 + bars + legend
    assert "40 × sliding-window attention" in diagram


def test_every_letter_of_the_pattern_has_a_color():
    assert set(BLOCKS) == set(SYMBOLS)
    assert len(set(BLOCKS.values())) == len(SYMBOLS)


@pytest.mark.parametrize("dark", [False, True])
def test_an_unknown_letter_has_a_color_of_its_own(dark: bool):
    new = [block_color(letter, dark=dark) for letter in ("Q1", "X", "q")]
    assert new == [block_color(letter, dark=dark) for letter in ("Q2", "X", "q")]
    assert len({*new, *(block_color(letter, dark=dark) for letter in SYMBOLS)}) == len(
        {block_color(letter, dark=dark) for letter in SYMBOLS}
    ) + len(new)
