"""The page of a store: its studies, and the hypervolume of each over time."""

import streamlit as st

from ..orchestrator.store import Store
from . import charts, queries

REFRESH_S = 5


@st.fragment(run_every=REFRESH_S)
def page(store: Store, front: st.Page) -> None:
    """Show the hypervolume of the selected study; the page refreshes while searches run."""
    studies = store.studies()
    selected = st.dataframe(
        queries.overview(studies),
        key="studies",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [0]}},
        hide_index=True,
        column_config={"created": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")},
    )
    for row in selected["selection"]["rows"]:
        study = studies[row]
        st.subheader(study.name)
        st.page_link(front, label="Show its front →", query_params={"study": study.name})
        st.plotly_chart(charts.hypervolume(queries.front_steps(store, study)), key="hypervolume")
