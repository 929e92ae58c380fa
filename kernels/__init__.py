"""Fast operators: each has one meaning in reference.py, a torch form, a Triton form, one door."""
