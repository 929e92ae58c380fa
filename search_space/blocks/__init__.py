"""Block kinds: one record per file, with its formulas."""
