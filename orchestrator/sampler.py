"""What to try next: Optuna behind ask and tell, in memory; the store is the truth.

A suggestion is a function of the seed, the trial number and what was told before: the sampler is
seeded anew for each number, so a resumed study goes on as the uninterrupted one would have.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from ..search_space.architecture import Architecture
from ..search_space.domain import Choices, Domain, LogRange
from ..search_space.space import Rejected, SearchSpace
from ..search_space.warm_start import starts

STARTUP_TRIALS = 10
# Past this many trials the sampler sees the latest ones only: TPE's cost grows with history
# (0.3 s a suggestion at 2,000 trials, 3.5 s at 10,000).
MEMORY = 1000
LEGAL = "legal"


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The values drawn and the candidate they make, or why they make none."""

    number: int
    parameters: dict[str, Any]
    architecture: Architecture | None
    rejection: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is told of a number: objective values, or None for a fault; constraints broken if > 0."""

    number: int
    parameters: dict[str, Any]
    values: tuple[float, ...] | None
    violation: dict[str, float]
    rejected: bool = False


class Sampler:
    """Multivariate TPE over the conditional space; see Optuna's TPESampler."""

    def __init__(self, space: SearchSpace, better: Sequence[str], seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seed = space, seed
        self.directions = [
            StudyDirection.MINIMIZE if side == "lower" else StudyDirection.MAXIMIZE
            for side in better
        ]
        self.study = self._empty()
        self.asked: dict[int, optuna.Trial] = {}
        self.starts = starts(space)

    def suggest(self, number: int, *, explore: bool = False) -> Suggestion:
        """The candidate of a number; a refused one is told to Optuna at once.

        The first numbers are those of the space's warm starts. With `explore` a later one is drawn
        at random, whatever was timings.
        """
        of_number = _seed_of(self.seed, number)
        random_sampler = optuna.samplers.RandomSampler(seed=of_number)
        self.study.sampler = random_sampler if explore else _tpe(of_number)
        if number < len(self.starts):
            self.study.enqueue_trial(self._labeled(self.starts[number].parameters))
        trial = self.study.ask()
        drawn: dict[str, Any] = {}

        def choose(name: str, domain: Domain) -> Any:
            drawn[name] = _suggest(trial, name, domain)
            return drawn[name]

        try:
            architecture = self.space.draw(choose)
        except Rejected as rejected:
            _tell_rejected(self.study, trial)
            return Suggestion(
                number=number, parameters=drawn, architecture=None, rejection=str(rejected)
            )
        self.asked[number] = trial
        return Suggestion(number=number, parameters=drawn, architecture=architecture)

    def tell(self, outcome: Outcome) -> None:
        """Tell a number's outcome. A fault is told as failed: it says nothing of the objectives."""
        trial = self.asked.pop(outcome.number)
        if outcome.rejected:
            _tell_rejected(self.study, trial)
        elif outcome.values is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            for label, violation in outcome.violation.items():
                trial.set_constraint(label, violation)
            self.study.tell(trial, list(outcome.values))
        history = self.study.get_trials(deepcopy=False)
        if len(history) > 2 * MEMORY:
            self.study = self._empty()
            self.study.add_trials([t for t in history[-MEMORY:] if t.state.is_finished()])

    def expect(self, number: int, parameters: dict[str, Any]) -> None:
        """Ask again for a candidate whose trial was cut off; its outcome will be told."""
        self.study.enqueue_trial(self._labeled(parameters))
        trial = self.study.ask()
        for name in parameters:
            _suggest(trial, name, self.space.domains[name])
        self.asked[number] = trial

    def replay(self, outcomes: Sequence[Outcome]) -> None:
        """Tell what earlier runs of the study found, in the order of their numbers."""
        for outcome in outcomes[-MEMORY:]:
            known = {n: v for n, v in outcome.parameters.items() if n in self.space.domains}
            domains = {name: self.space.domains[name] for name in known}
            done = outcome.values is not None
            state = TrialState.COMPLETE if done else TrialState.FAIL
            self.study.add_trial(
                optuna.create_trial(
                    state=TrialState.PRUNED if outcome.rejected else state,
                    values=list(outcome.values) if outcome.values is not None else None,
                    params={name: _label(domains[name], value) for name, value in known.items()},
                    distributions={name: _distribution(domain) for name, domain in domains.items()},
                    constraints={LEGAL: 1.0} if outcome.rejected else outcome.violation,
                )
            )

    def _labeled(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {n: _label(self.space.domains[n], value) for n, value in parameters.items()}

    def _empty(self) -> optuna.Study:
        return optuna.create_study(directions=self.directions, pruner=optuna.pruners.NopPruner())


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    """The univariate default repeats 17% of its suggestions on several objectives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            multivariate=True, n_startup_trials=STARTUP_TRIALS, seed=seed
        )


def _tell_rejected(study: optuna.Study, trial: optuna.Trial) -> None:
    trial.set_constraint(LEGAL, 1.0)
    study.tell(trial, state=TrialState.PRUNED)


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    match domain:
        case Choices():
            label = trial.suggest_categorical(name, domain.labels)
            return domain.values[domain.labels.index(label)]
        case LogRange():
            low, high = domain.log_range
            if domain.whole:
                return trial.suggest_int(name, int(low), int(high), log=True)
            return trial.suggest_float(name, low, high, log=True)
        case _:
            low, high, step = domain.range
            if domain.whole:
                return trial.suggest_int(name, int(low), int(high), step=int(step))
            return trial.suggest_float(name, low, high, step=step)


def _label(domain: Domain, value: Any) -> Any:
    """A value as Optuna holds it: choices by their label, which may stand for a list."""
    if isinstance(domain, Choices):
        return domain.labels[[*map(_plain, domain.values)].index(_plain(value))]
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Choices():
            return CategoricalDistribution(domain.labels)
        case LogRange():
            low, high = domain.log_range
            if domain.whole:
                return IntDistribution(int(low), int(high), log=True)
            return FloatDistribution(low, high, log=True)
        case _:
            low, high, step = domain.range
            if domain.whole:
                return IntDistribution(int(low), int(high), step=int(step))
            return FloatDistribution(low, high, step=step)
