"""The search and its memory: Optuna samples, Ray Tune runs, SQL remembers."""
