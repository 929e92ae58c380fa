"""Samplers: the choice of the next candidate of a search."""
