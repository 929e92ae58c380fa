"""Samplers by the name that a space file, a study and the command line have for them."""

from .base import Sampler
from .optuna import NSGA2, TPE, Random

SAMPLERS: dict[str, type[Sampler]] = {"tpe": TPE, "random": Random, "nsga2": NSGA2}
