"""The figures, read back from their data."""

import pandas as pd
import pytest

from archfront.dashboard import charts
from archfront.dashboard.layer_diagram import strip
from archfront.dashboard.queries import Quantity
from archfront.search_space.architecture import Architecture

AXES = {
    "x": Quantity(label="decode_ms", unit="ms", better="lower", source="estimated · ±9%"),
    "y": Quantity(label="recall", unit="", better="higher", source="measured · ±2%"),
    "color": Quantity(label="weight_gib", unit="GiB", better="lower", source="counted · exact"),
}


@pytest.fixture
def points() -> pd.DataFrame:
    """Three on the front, the second its knee; one dominated; one that breaks a constraint."""
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
    assert keys == {"dominated": ["d"], "breaks a constraint": ["e"], "front": ["c", "b", "a"]}


def test_the_knee_is_a_diamond_with_its_name(points):
    figure, traces = drawn(points)
    assert list(traces["front"].marker.symbol) == ["circle", "diamond", "circle"]
    assert [(note.x, note.y) for note in figure.layout.annotations] == [(10.0, 0.8)]


def test_on_a_logarithmic_axis_the_knee_is_named_in_decades(points):
    figure, _ = drawn(points, logs={"x", "color"})
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.annotations[0].x == 1.0


def test_the_axes_name_unit_better_side_provenance_and_error(points):
    figure, _ = drawn(points)
    assert figure.layout.xaxis.title.text == "decode_ms ↓ [ms]<br><sup>estimated · ±9%</sup>"
    assert figure.layout.yaxis.title.text == "recall ↑<br><sup>measured · ±2%</sup>"


def test_the_interval_is_drawn_on_the_front(points):
    _, traces = drawn(points)
    assert traces["front"].error_x.array == pytest.approx([0.2, 2.0, 6.0])
    assert traces["front"].error_x.arrayminus == pytest.approx([0.1, 1.0, 3.0])


def test_an_unknown_interval_is_not_drawn(points):
    points[["x_low", "x_high"]] = float("nan")
    _, traces = drawn(points)
    assert not traces["front"].error_x.visible


def test_only_two_objectives_are_connected(points):
    assert drawn(points)[1]["front"].mode == "markers"
    front = drawn(points, connected=True)[1]["front"]
    assert (front.mode, front.line.shape) == ("lines+markers", "hv")


def test_the_chosen_candidate_is_ringed(points):
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


def test_the_volume_counts_completed_trials():
    steps = pd.DataFrame({"number": [0, 2], "front_size": [1, 2], "hypervolume": [0.1, 0.3]})
    (line,) = charts.volume(steps).data
    assert list(line.x) == [1, 2]
    assert list(line.y) == [0.1, 0.3]


@pytest.mark.parametrize("dark", [False, True])
def test_the_strip_draws_every_block_and_its_format(dark: bool):
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
    picture = strip(architecture, dark=dark)
    legend, bars = 3, 39
    assert picture.count("<rect") == 80 + bars + legend
    assert "40 × sliding-window attention" in picture
