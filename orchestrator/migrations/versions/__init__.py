"""Migrations of the store: one file per schema change."""
