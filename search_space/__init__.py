"""Architectures and search spaces as plain data, and counts by formula."""
