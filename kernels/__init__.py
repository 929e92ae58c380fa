"""Operators of hybrid language models: public API op.py, definition reference.py, torch and Triton."""
