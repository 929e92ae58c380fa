"""Block kinds: one record a file, its counting formula beside it."""
