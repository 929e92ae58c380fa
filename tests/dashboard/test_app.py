"""The app without a browser: what the pages show and what their widgets do."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.testing.v1 import AppTest

from archfront.dashboard import queries
from archfront.orchestrator.store import Store, open_store

APP = str(files("archfront.dashboard") / "app.py")


def app_on(url: str, monkeypatch: pytest.MonkeyPatch, **address: str) -> AppTest:
    """The app, run at a URL of its front page."""
    monkeypatch.setenv("ARCHFRONT_STORE", url)
    app = AppTest.from_file(APP, default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


@pytest.fixture
def app(store_url: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return app_on(store_url, monkeypatch, study="tiny-1")


def figure(app: AppTest) -> dict[str, Any]:
    return json.loads(app.get("plotly_chart")[0].proto.spec)


def axes(app: AppTest) -> list[str]:
    layout = figure(app)["layout"]
    return [layout[axis]["title"]["text"].split()[0] for axis in ("xaxis", "yaxis")]


def test_the_front_page_opens_on_the_knee(app: AppTest, store: Store):
    candidates = queries.candidates(store, store.study("tiny-1"))
    assert [head.value for head in app.subheader] == candidates.query("knee")["key"].tolist()
    assert axes(app) == ["bits_per_byte", "recall"]
    assert "38 trials complete, 3 failed, 4 rejected" in app.text[1].value


def test_the_newest_study_is_shown_first(store_url: str, monkeypatch: pytest.MonkeyPatch):
    assert app_on(store_url, monkeypatch).selectbox(key="study").value == "tiny-1"


def test_a_study_without_completed_trials_shows_that(app: AppTest):
    app.selectbox(key="study").select("waiting").run()
    assert not app.exception
    assert app.info[0].value == "No trial is complete yet."


def test_any_metric_may_be_an_axis(app: AppTest):
    app.selectbox(key="x").select("weight_gib").run()
    assert axes(app) == ["weight_gib", "recall"]
    app.toggle(key="log x weight_gib").set_value(True).run()
    assert figure(app)["layout"]["xaxis"]["type"] == "log"


def test_a_metric_with_zeros_has_no_logarithmic_axis(app: AppTest):
    app.selectbox(key="x").select("kv_bytes_per_token").run()
    assert app.toggle(key="log x kv_bytes_per_token").disabled


def select(app: AppTest, widget: str, **selection: list[Any]) -> None:
    """Send what the browser sends for a click on a chart or a table; AppTest has no clicks."""
    state = WidgetState(id=widget, string_value=json.dumps({"selection": selection}))
    app._run(WidgetStates(widgets=[state]))


def test_a_click_on_a_point_shows_its_candidate(app: AppTest):
    chart = app.get("plotly_chart")[0].proto.id
    key = next(t for t in figure(app)["data"] if t["name"] == "front")["customdata"][0][0]
    select(app, chart, points=[{"customdata": [key]}], point_indices=[0], box=[], lasso=[])
    assert app.subheader[0].value == key
    assert app.query_params["key"] == key
    assert yaml.safe_load(app.code[0].value)["key"] == key


def test_a_row_selected_in_the_table_shows_its_candidate(app: AppTest):
    table = next(table for table in app.dataframe if "active M params" in table.value)
    select(app, table.proto.id, rows=[5], columns=[], cells=[])
    assert app.subheader[0].value == table.value["key"][5]
    ring = figure(app)["data"][-1]
    assert ring["name"] == "chosen"


def test_a_link_opens_its_candidate(store_url: str, monkeypatch: pytest.MonkeyPatch, store: Store):
    dominated = next(t for t in store.trials("tiny-1") if t.state == "complete" and not t.on_front)
    assert dominated.key is not None
    app = app_on(store_url, monkeypatch, study="tiny-1", key=dominated.key[:8])
    assert app.subheader[0].value == dominated.key
    assert "not on the front" in app.text[2].value


def test_a_link_to_an_unknown_candidate_shows_the_knee(
    store_url: str, monkeypatch: pytest.MonkeyPatch
):
    app = app_on(store_url, monkeypatch, study="tiny-1", key="![x](http://example.invalid)")
    assert "this is the knee" in app.warning[0].value
    assert "example.invalid" not in app.warning[0].value
    assert len(app.subheader) == 1


def test_choosing_another_study_clears_the_candidate(
    store_url: str, monkeypatch: pytest.MonkeyPatch, store: Store
):
    app = app_on(store_url, monkeypatch, study="tiny-1", key=store.front("tiny-1")[0].key or "")
    app.selectbox(key="study").select("waiting").run()
    assert "key" not in app.query_params


def test_markup_in_a_reason_is_not_rendered(app: AppTest, hostile: str):
    faults = next(table.value for table in app.dataframe if "reason" in table.value)
    assert hostile in faults["reason"].tolist()
    marked_up = [element.value for element in (*app.markdown, *app.caption, *app.text)]
    assert not any("onerror" in text for text in marked_up)


def test_the_studies_page_lists_every_study(store_url: str):
    def script(url: str) -> None:
        import streamlit as st

        from archfront.dashboard import studies
        from archfront.orchestrator.store import open_store

        store = open_store(url, readonly=True)
        front = st.Page(lambda: None, title="Front", url_path="front")
        here = st.Page(lambda: studies.page(store, front), title="Studies", default=True)
        st.navigation([here, front]).run()

    app = AppTest.from_function(script, kwargs={"url": store_url}, default_timeout=60).run()
    assert not app.exception
    assert app.dataframe[0].value["study"].tolist() == ["tiny-1", "waiting"]


def test_a_missing_store_is_reported_with_the_command_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    app = app_on(f"sqlite:///{tmp_path}/absent.db", monkeypatch)
    assert "archfront dashboard --store" in app.error[0].value
    assert "no such store" in app.text[0].value


def test_without_a_store_the_default_store_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARCHFRONT_STORE", raising=False)
    app = AppTest.from_file(APP, default_timeout=60).run()
    assert "archfront.db: no such store" in app.text[0].value


def test_an_empty_store_shows_how_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"sqlite:///{tmp_path}/new.db"
    open_store(url).close()
    app = app_on(url, monkeypatch)
    assert "archfront search" in app.info[0].value


def test_the_app_writes_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch):
    path = Path(store_url.removeprefix("sqlite:///"))
    before = path.read_bytes()
    app_on(store_url, monkeypatch, study="tiny-1").selectbox(key="y").select("weight_gib").run()
    assert path.read_bytes() == before


def test_the_app_loads_neither_torch_nor_a_search_library(store_url: str):
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        f"app = AppTest.from_file({APP!r}, default_timeout=60).run()\n"
        "app.toggle(key='published').set_value(True).run()\n"
        "assert not app.exception\n"
        "print(sorted({'torch', 'triton', 'ray', 'optuna'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ARCHFRONT_STORE": store_url},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "[]"
