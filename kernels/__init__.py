"""Operators of hybrid language models: public API, reference, torch and Triton."""
