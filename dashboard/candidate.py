"""The details of one architecture: its layers, its measurements, its export file."""

from typing import Any

import pandas as pd
import streamlit as st

from ..orchestrator.palette import PROVENANCES
from ..search_space.architecture import Architecture
from ..search_space.pattern import SYMBOLS
from .layer_diagram import layer_diagram
from .queries import Details


def show(details: Details) -> None:
    """Draw the details of an architecture."""
    architecture, trial = details.architecture, details.trial
    front = "on the front" if trial.on_front else "not on the front"
    st.subheader(architecture.key)
    st.text(
        f"{architecture.pattern} · d_model {architecture.d_model} · "
        f"{architecture.num_layers} layers · vocabulary {architecture.vocab_size:,} · "
        f"FP8: {', '.join(architecture.precision.fp8) or 'none'} · "
        f"trial {trial.number} of {trial.study}, {front}"
    )
    st.image(
        layer_diagram(architecture, dark=st.context.theme.type == "dark"),
        width="content",
        alt=f"layers of {architecture.pattern}",
    )
    st.dataframe(_blocks(architecture), hide_index=True, width="stretch")
    left, right = st.columns([2, 1])
    with left:
        st.dataframe(
            details.measurements,
            hide_index=True,
            width="stretch",
            height="content",
            column_config={
                "value": st.column_config.TextColumn(alignment="right"),
                "device": st.column_config.TextColumn(width=170),
                "provenance": st.column_config.MultiselectColumn(
                    options=list(PROVENANCES), color=[color.page for color in PROVENANCES.values()]
                ),
            },
        )
    with right:
        st.download_button(
            f"Download {architecture.key}.yaml",
            details.yaml,
            file_name=f"{architecture.key}.yaml",
            mime="application/yaml",
            on_click="ignore",
            type="primary",
        )
        st.code(details.yaml, language="yaml", height=640)
        st.text(" · ".join(f"{name} {value[:12]}" for name, value in details.facts.items()))


def _blocks(architecture: Architecture) -> pd.DataFrame:
    """One row per block with the fields that are not at their defaults."""
    rows: list[dict[str, Any]] = []
    for symbol, block in architecture.blocks.items():
        fields = block.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        rows.append(
            {
                "block": symbol,
                "kind": SYMBOLS[symbol[0]],
                "fields": " · ".join(f"{name} {value}" for name, value in fields.items()),
            }
        )
    return pd.DataFrame(rows)
