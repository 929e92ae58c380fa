"""Cost and quality of a candidate: measured, estimated or counted, each with its provenance."""
