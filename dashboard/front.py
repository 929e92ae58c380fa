"""The page of one study: its front, the chosen candidate, the trials that gave none."""

import pandas as pd
import streamlit as st

from ..orchestrator.store import Store, Study
from . import candidate, charts, queries
from .queries import Quantity

DECADE = 10  # a metric that spans one is at first shown on a logarithmic axis


def page(store: Store) -> None:
    """Study, axes and candidate stand in the page's address, so that a link shows the same."""
    studies = {study.name: study for study in store.studies()}
    columns = st.columns(4)
    name = columns[0].selectbox(
        "study", list(studies), key="study", bind="query-params", on_change=_choose, args=(None,)
    )
    study = studies[name]
    columns[0].text(f"{study.status}, target {study.target}")
    front, faults = st.tabs(["Front", "Failed and refused"])
    with faults:
        st.dataframe(queries.faults(store, study), hide_index=True, width="stretch")
    known = queries.quantities(store, study)
    if not known:
        front.info("No candidate is complete yet.")
        return
    complete, readings = queries.candidates(store, study), queries.readings(store, study)
    axes: dict[str, Quantity] = {}
    logs: set[str] = set()
    for index, (axis, column) in enumerate(zip(("x", "y", "color"), columns[1:], strict=True)):
        first = min(index, len(known) - 1)
        label = column.selectbox(axis, list(known), first, key=axis, bind="query-params")
        axes[axis] = known[label]
        values = readings.loc[readings["label"] == label, "value"]
        positive = bool((values > 0).all())
        wide = positive and values.max() >= DECADE * values.min()
        # Each metric has a switch of its own, so that a new one begins with what suits it.
        if column.toggle("log", wide, key=f"log {axis} {label}", disabled=not positive):
            logs.add(axis)
    objectives = [known[label] for label in list(known)[: len(study.objectives)]]
    key = _chosen(complete)
    with front:
        st.text(_headline(study, queries.volumes(store, study)))
        chart, table = st.columns(2)
        labels = {axis: quantity.label for axis, quantity in axes.items()}
        with chart:
            models = None
            if st.toggle("published models", key="published", bind="query-params"):
                known_models = queries.published_models(store, study)
                models = queries.model_points(known_models, labels["x"], labels["y"])
                if models.empty:
                    st.text(
                        "A published model is not trained here: choose axes that need no training."
                    )
            st.plotly_chart(
                charts.front(
                    queries.points(complete, readings, labels),
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
            _table(queries.front_table(complete, readings, objectives), objectives, key)
        if key:
            candidate.show(queries.details(store, study, key))


def _headline(study: Study, steps: pd.DataFrame) -> str:
    """As the terminal heads a front."""
    volumes = steps["hypervolume"].dropna().tolist()
    return (
        f"{study.counts.get('complete', 0)} trials done, {study.counts.get('failed', 0)} failed, "
        f"{study.counts.get('rejected', 0)} refused · front {study.front_size}"
        + (f" · hypervolume {volumes[-1]:.3f}" if volumes else "")
        + " · ◆ knee · ± half of the 90% interval"
    )


def _chosen(complete: pd.DataFrame) -> str | None:
    """The key in the address, which may be cut short; else the knee's."""
    wanted = st.query_params.get("key")
    if wanted:
        found = complete.loc[complete["key"].str.startswith(wanted), "key"]
        if len(found):
            return found.iloc[0]
        st.warning("The study has no candidate with the key in the address; this is the knee.")
    knees = complete.loc[complete["knee"], "key"]
    return knees.iloc[0] if len(knees) else None


def _table(table: pd.DataFrame, objectives: list[Quantity], chosen: str | None) -> None:
    """The front as a table; its tick is where the choice is, so each choice has a table of its own."""
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
        if "customdata" in point:  # a published model has none
            _choose(point["customdata"][0])


def _choose(key: str | None) -> None:
    if key is None:
        st.query_params.pop("key", None)
    else:
        st.query_params["key"] = key
