"""The dashboard of one store, read-only: what `archfront dashboard` gives Streamlit to run."""

# Pyright finds no `archfront` when the folder it is checked out in has another name.
# pyright: reportMissingImports=false

import os

import streamlit as st

from archfront.dashboard import front, studies
from archfront.dashboard.queries import opened
from archfront.orchestrator.cli.app import DEFAULT_STORE
from archfront.search_space.document import InputError

st.set_page_config(page_title="archfront", page_icon="🔷", layout="wide")
front_page = st.Page(lambda: front.page(store), title="Front", url_path="front", default=True)
studies_page = st.Page(lambda: studies.page(store, front_page), title="Studies", url_path="studies")
chosen = st.navigation([front_page, studies_page], position="top")
try:
    store = opened(os.environ.get("ARCHFRONT_STORE", DEFAULT_STORE))
    if store.studies():
        chosen.run()
    else:
        st.info("The store has no study yet. Begin one: `archfront search SPACE.yaml`")
except InputError as error:
    st.error("Nothing to show. Name a store: `archfront dashboard --store sqlite:///FILE`")
    st.text(str(error))
