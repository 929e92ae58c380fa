"""The dashboard: Streamlit pages on a store."""
