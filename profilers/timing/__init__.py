"""Blocks of an architecture, timed one by one on the local device and put together."""
