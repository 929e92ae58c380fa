"""The page of a store: its studies and the course of each."""

import streamlit as st

from ..orchestrator.store import Store
from . import charts, queries

REFRESH_S = 5


@st.fragment(run_every=REFRESH_S)
def page(store: Store, front: st.Page) -> None:
    """The ticked study shows its course; the page renews itself while searches run."""
    studies = store.studies()
    ticked = st.dataframe(
        queries.overview(studies),
        key="studies",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [0]}},
        hide_index=True,
        column_config={"begun": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")},
    )
    for row in ticked["selection"]["rows"]:
        study = studies[row]
        st.subheader(study.name)
        st.page_link(front, label="See its front →", query_params={"study": study.name})
        st.plotly_chart(charts.volume(queries.volumes(store, study)), key="volume")
