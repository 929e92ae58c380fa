"""Samplers: what a search tries next."""
