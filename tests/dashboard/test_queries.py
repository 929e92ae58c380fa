"""The data frames that the pages show."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from archfront.dashboard import queries
from archfront.orchestrator.export import as_yaml, exported
from archfront.orchestrator.store import Objective, Store, open_store
from archfront.profilers.report import Report
from archfront.search_space.check import load_space
from archfront.search_space.space import sample

OBJECTIVES = ["bits_per_byte", "recall", "decode_ms@chat-4k"]


@pytest.fixture
def study(store: Store):
    return store.study("tiny-1")


def test_the_overview_counts_each_study(store: Store):
    rows = queries.overview(store.studies()).set_index("study")
    assert rows.loc["tiny-1", ["complete", "failed", "rejected"]].tolist() == [38, 3, 4]
    assert rows.loc["waiting", "complete"] == 0


def test_candidates_are_the_completed_trials_with_one_knee(store: Store, study):
    candidates = queries.candidates(store, study)
    assert len(candidates) == 38
    assert candidates["on_front"].sum() == study.front_size
    assert candidates.loc[candidates["knee"], "on_front"].tolist() == [True]


def test_a_study_without_trials_gives_empty_frames(store: Store):
    waiting = store.study("waiting")
    assert queries.quantities(store, waiting) == {}
    assert all(
        frame(store, waiting).empty
        for frame in (queries.candidates, queries.faults, queries.measurements, queries.front_steps)
    )


def test_the_objectives_are_the_first_quantities_under_their_full_labels(store: Store, study):
    assert list(queries.quantities(store, study))[:3] == OBJECTIVES


@pytest.mark.parametrize(
    ("label", "source"),
    [
        ("recall", r"measured · ±\d.*% · cpu x86_64, 1 thread\(s\)"),
        ("decode_ms@chat-4k", r"estimated · ±\d+% · h200_sxm"),
        ("weight_gib", "counted · exact"),
    ],
)
def test_the_source_of_a_quantity_is_provenance_error_and_device(
    store: Store, study, label: str, source: str
):
    assert re.fullmatch(source, queries.quantities(store, study)[label].source)


def test_points_carry_the_interval_of_each_axis(store: Store, study):
    candidates = queries.candidates(store, study)
    measurements = queries.measurements(store, study)
    axes = {"x": "recall", "y": "decode_ms@chat-4k", "color": "weight_gib"}
    points = queries.points(candidates, measurements, axes)
    first = points.iloc[0]
    report = store.report("tiny-1", int(first["number"]))
    assert report is not None
    assert first["x_value"] == report.value("recall")
    assert first["x_low"] < first["x_value"] < first["x_high"]
    assert len(points) == len(candidates)


def test_the_front_table_is_best_first_with_half_widths(store: Store, study):
    quantities = queries.quantities(store, study)
    table = queries.front_table(
        queries.candidates(store, study),
        queries.measurements(store, study),
        [quantities[label] for label in OBJECTIVES],
    )
    assert table["bits_per_byte ↓ [bit/byte]"].is_monotonic_increasing
    assert table["± recall"].tolist() == pytest.approx([0.03] * study.front_size)
    assert table[""].tolist().count("◆") == 1


def test_faults_are_counted_by_reason(store: Store, study, hostile: str):
    faults = queries.faults(store, study).set_index("reason")
    assert faults.loc["duplicate of trial 3", "numbers"] == "9, 19, 29, 39"
    assert faults.loc["loss is nan at step 40", ["kind", "trials"]].tolist() == ["nan", 2]
    assert hostile in faults.index


def test_details_are_what_is_exported(store: Store, study):
    key = queries.candidates(store, study)["key"][0]
    details = queries.details(store, study, key)
    assert details.yaml == as_yaml(exported(store, key, "tiny-1"))
    table = details.measurements.set_index("metric")
    assert table.loc["weight_gib", "90% interval"] == "exact"
    assert table.loc["decode_ms", "provenance"] == ["estimated"]
    assert table.loc["decode_ms", "workload"] == "chat-4k"


@pytest.mark.parametrize(("study", "target"), [("first", "a100_sxm_80gb"), ("second", "h200_sxm")])
def test_details_are_those_of_the_selected_study(tmp_path: Path, study: str, target: str):
    space = load_space(Path(str(files("archfront.examples") / "tiny.yaml")))
    chosen = sample(space, 10, seed=0).legal[0]
    with open_store(f"sqlite:///{tmp_path}/runs.db") as store:
        for name, gpu in (("first", "a100_sxm_80gb"), ("second", "h200_sxm")):
            store.create_study(
                name=name,
                space_yaml=space.document.text,
                space_name=space.name,
                objectives=[Objective(label="recall", better="higher")],
                seed=0,
                sampler="tpe",
                target=gpu,
                trials_wanted=1,
            )
            store.begin_trial(name, 0, chosen, {})
            report = Report(key=chosen.key, measurements=())
            store.finish_trial(name, 0, report, [1.0], True, {})
        details = queries.details(store, store.study(study), chosen.key)
    assert details.trial.study == study
    assert f"target: {target}" in details.yaml
