"""Search spaces that ship with archfront."""
