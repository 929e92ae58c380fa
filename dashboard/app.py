"""The script that Streamlit runs for `archfront dashboard`: the pages of one store, read-only."""

# Pyright finds no `archfront` where the checkout has another name.
# pyright: reportMissingImports=false

import os

import streamlit as st

from archfront.dashboard import front, studies
from archfront.dashboard.queries import opened
from archfront.orchestrator.store_url import DEFAULT_STORE, STORE_VARIABLE
from archfront.search_space.document import InputError

st.set_page_config(page_title="archfront", page_icon="🔷", layout="wide")
front_page = st.Page(lambda: front.page(store), title="Front", url_path="front", default=True)
studies_page = st.Page(lambda: studies.page(store, front_page), title="Studies", url_path="studies")
chosen = st.navigation([front_page, studies_page], position="top")
try:
    store = opened(os.environ.get(STORE_VARIABLE, DEFAULT_STORE))
    if store.studies():
        chosen.run()
    else:
        st.info("The store has no study yet. Start one: `archfront search SPACE.yaml`")
except InputError as error:
    st.error("The store cannot be read. Name another: `archfront dashboard --store sqlite:///FILE`")
    st.text(str(error))
