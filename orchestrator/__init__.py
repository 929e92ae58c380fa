"""Searches: samplers, the driver of a study, its Ray Tune workers, the store and the commands."""
