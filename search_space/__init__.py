"""What may vary: architectures, spaces and their counts, as plain data."""
