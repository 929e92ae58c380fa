"""Linear recurrences: a state that decays, is corrected and written by each token, and read."""
