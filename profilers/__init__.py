"""What a candidate costs and is worth: measured, estimated or counted, and labeled so."""
