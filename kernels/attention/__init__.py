"""Softmax attention: over a sequence, over a paged cache, over selected blocks of keys."""
