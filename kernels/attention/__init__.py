"""Softmax attention: over a text, over a paged cache, over selected blocks of keys."""
