"""The page of one study: its front, the chosen candidate, the failed and rejected trials."""

import pandas as pd
import streamlit as st

from ..orchestrator.format import FRONT_LEGEND, headline
from ..orchestrator.store import Store, Study
from . import candidate, charts, queries
from .queries import Quantity

LOG_SPAN = 10  # a metric with this ratio of largest to smallest value starts on a log axis


def page(store: Store) -> None:
    """Draw the page; its URL holds study, axes and candidate, so that a link shows the same."""
    studies = {study.name: study for study in store.studies()}
    columns = st.columns(4)
    name = columns[0].selectbox(
        "study", list(studies), key="study", bind="query-params", on_change=_choose, args=(None,)
    )
    study = studies[name]
    columns[0].text(f"{study.status}, target {study.target}")
    front, faults = st.tabs(["Front", "Failed and rejected"])
    with faults:
        st.dataframe(queries.faults(store, study), hide_index=True, width="stretch")
    known = queries.quantities(store, study)
    if not known:
        front.info("No trial is complete yet.")
        return
    complete = queries.candidates(store, study)
    measurements = queries.measurements(store, study)
    axes: dict[str, Quantity] = {}
    logs: set[str] = set()
    for index, (axis, column) in enumerate(zip(("x", "y", "color"), columns[1:], strict=True)):
        first = min(index, len(known) - 1)
        label = column.selectbox(axis, list(known), first, key=axis, bind="query-params")
        axes[axis] = known[label]
        values = measurements.loc[measurements["label"] == label, "value"]
        positive = bool((values > 0).all())
        wide = positive and values.max() >= LOG_SPAN * values.min()
        # One switch per metric: a newly chosen metric starts with its own default.
        if column.toggle("log", wide, key=f"log {axis} {label}", disabled=not positive):
            logs.add(axis)
    objectives = [known[label] for label in list(known)[: len(study.objectives)]]
    key = _chosen(complete)
    with front:
        st.text(_headline(study, queries.front_steps(store, study)))
        chart, table = st.columns(2)
        labels = {axis: quantity.label for axis, quantity in axes.items()}
        with chart:
            models = None
            if st.toggle("published models", key="published", bind="query-params"):
                known_models = queries.published_models(store, study)
                models = queries.model_points(known_models, labels["x"], labels["y"])
                if models.empty:
                    st.text("Published models are not trained: choose axes that need no training.")
            st.plotly_chart(
                charts.front(
                    queries.points(complete, measurements, labels),
                    axes,
                    logs,
                    chosen=key,
                    connected={axes["x"], axes["y"]} == set(objectives),
                    models=models,
                ),
                key="chart",
                on_select=_clicked,
                selection_mode="points",
                config={"displaylogo": False},
            )
        with table:
            _table(queries.front_table(complete, measurements, objectives), objectives, key)
        if key:
            candidate.show(queries.details(store, study, key))


def _headline(study: Study, steps: pd.DataFrame) -> str:
    volumes = steps["hypervolume"].dropna().tolist()
    return f"{headline(study, volumes[-1] if volumes else None)} · {FRONT_LEGEND}"


def _chosen(complete: pd.DataFrame) -> str | None:
    """The key in the URL, which may be a prefix; by default the key of the knee."""
    wanted = st.query_params.get("key")
    if wanted:
        found = complete.loc[complete["key"].str.startswith(wanted), "key"]
        if len(found):
            return found.iloc[0]
        st.warning("The study has no candidate with the key in the URL; this is the knee.")
    knees = complete.loc[complete["knee"], "key"]
    return knees.iloc[0] if len(knees) else None


def _table(table: pd.DataFrame, objectives: list[Quantity], chosen: str | None) -> None:
    """The front as a table with the chosen row selected, which takes one widget per choice."""
    key, keys = f"front with {chosen}", table["key"].tolist()

    def clicked() -> None:
        for row in st.session_state[key]["selection"]["rows"]:
            _choose(keys[row])

    st.dataframe(
        table,
        key=key,
        on_select=clicked,
        selection_mode="single-row",
        selection_default={
            "selection": {"rows": [row for row, k in enumerate(keys) if k == chosen]}
        },
        hide_index=True,
        height=480,
        column_config={
            "number": None,
            "": st.column_config.TextColumn(width=20),
            "active M params": st.column_config.NumberColumn(format="%.1f", width=90),
            **{q.name: st.column_config.NumberColumn(format="%.4g", width=84) for q in objectives},
            **{
                f"± {q.label}": st.column_config.NumberColumn("±", format="%.2g", width=52)
                for q in objectives
            },
        },
    )


def _clicked() -> None:
    for point in st.session_state["chart"]["selection"]["points"][:1]:
        if "customdata" in point:  # published models have none
            _choose(point["customdata"][0])


def _choose(key: str | None) -> None:
    if key is None:
        st.query_params.pop("key", None)
    else:
        st.query_params["key"] = key
