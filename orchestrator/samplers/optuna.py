"""Optuna's samplers behind the sampler protocol: TPE, random, NSGA-II.

An in-memory Optuna study holds the trials of the latest window in the order of their numbers, and
an Optuna sampler seeded for the number draws from it. Nothing else is kept between two suggestions,
so a study rebuilt from outcomes continues as the uninterrupted one.
"""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ...search_space.domain import Choices, Domain, LogRange
from ...search_space.space import Rejected, SearchSpace
from ...search_space.warm_start import starts
from .base import Direction, Outcome, Price, Sampler, Suggestion

# TPE's time grows with history: 0.3 s per suggestion at 2,000 trials, 3.5 s at 10,000.
WINDOW = 1000
STARTUP_TRIALS = 10
POPULATION = 20
VALID = "valid"  # the constraint that an invalid trial violates
STATES = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    # As failed: a duplicate or a violated bound on costs has no new values of the objectives.
    "rejected": TrialState.FAIL,
    "invalid": TrialState.PRUNED,
}


class OptunaSampler(Sampler):
    """Base of the samplers that an Optuna sampler draws for.

    The first suggestions are the warm starts of the space. After a rejected suggestion the next
    one is drawn at random, since the model has not changed and would repeat itself.

    With W = `window`, the suggestion of number n is drawn from the trials numbered
    max(0, (n // W - 1) * W) and above: all trials at first, then the latest W to 2 W.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        directions: Sequence[Direction],
        seed: int,
        price: Price,
        window: int = WINDOW,
    ) -> None:
        super().__init__(space, directions=directions, seed=seed, price=price)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.window, self.first = window, 0
        self.starts = starts(space)
        self.outcomes: dict[int, Outcome] = {}  # of the window
        self.in_flight: dict[int, Mapping[str, Any]] = {}
        self._rebuild()

    @abstractmethod
    def sampler_for(self, seed: int) -> BaseSampler:
        """The Optuna sampler for one suggestion."""

    def ask(self, number: int) -> Suggestion:
        first = self._first(number)
        if first > self.first:
            self.first = first
            self._rebuild()
        suggestion = self._start(number) if number < len(self.starts) else self._draw(number)
        self.in_flight[number] = suggestion.parameters
        self._add(number, suggestion.parameters)
        return suggestion

    def tell(self, outcome: Outcome) -> None:
        number = outcome.number
        if self.in_flight.pop(number, None) is None:
            raise ValueError(f"trial {number} is not in flight")
        if number >= self.first:
            self.outcomes[number] = outcome
            self._end(outcome)

    def restore(
        self, outcomes: Sequence[Outcome], in_flight: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self.outcomes = {outcome.number: outcome for outcome in outcomes}
        self.in_flight = dict(in_flight)
        self.first = self._first(1 + max((*self.outcomes, *self.in_flight), default=-1))
        self._rebuild()

    def _first(self, number: int) -> int:
        """The first trial of the window that a suggestion is drawn from."""
        return max(0, (number // self.window - 1) * self.window)

    def _start(self, number: int) -> Suggestion:
        start = self.starts[number]
        if start.architecture is None:
            return self.invalid(number, start.parameters, start.rejection or "")
        return self.suggestion(number, start.parameters, start.architecture)

    def _draw(self, number: int) -> Suggestion:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        before = self.outcomes.get(number - 1)
        explore = before is not None and before.state in ("rejected", "invalid")
        self.study.sampler = (
            optuna.samplers.RandomSampler(seed) if explore else self.sampler_for(seed)
        )
        # Drawn on a trial of its own: Optuna keeps more of a trial that it sampled than its
        # parameters, and that could not be restored.
        draft = self.study.ask()
        parameters: dict[str, Any] = {}

        def choose(name: str, domain: Domain) -> Any:
            parameters[name] = _suggest(draft, name, domain)
            return parameters[name]

        try:
            architecture = self.space.draw(choose)
        except Rejected as rejected:
            return self.invalid(number, parameters, str(rejected))
        finally:
            self.study.tell(draft, state=TrialState.FAIL)
        return self.suggestion(number, parameters, architecture)

    def _rebuild(self) -> None:
        """Fill a new Optuna study with the trials of the window."""
        self.storage = optuna.storages.InMemoryStorage()
        self.study = optuna.create_study(
            storage=self.storage,
            directions=[
                StudyDirection.MINIMIZE if side == "lower" else StudyDirection.MAXIMIZE
                for side in self.directions
            ],
            pruner=optuna.pruners.NopPruner(),
        )
        self.trial_ids: dict[int, int] = {}
        self.outcomes = {n: known for n, known in self.outcomes.items() if n >= self.first}
        window = {n: parameters for n, parameters in self.in_flight.items() if n >= self.first}
        window |= {number: outcome.parameters for number, outcome in self.outcomes.items()}
        for number in sorted(window):
            self._add(number, window[number])
            if number in self.outcomes:
                self._end(self.outcomes[number])

    def _add(self, number: int, parameters: Mapping[str, Any]) -> None:
        domains = {name: self.space.domains[name] for name in parameters}
        running = optuna.create_trial(
            state=TrialState.RUNNING,
            params={name: _label(domains[name], value) for name, value in parameters.items()},
            distributions={name: _distribution(domain) for name, domain in domains.items()},
        )
        study = self.storage.get_study_id_from_name(self.study.study_name)
        self.trial_ids[number] = self.storage.create_new_trial(study, running)

    def _end(self, outcome: Outcome) -> None:
        trial = self.trial_ids.pop(outcome.number)
        violation = {VALID: 1.0} if outcome.state == "invalid" else outcome.violation or {}
        ended = optuna.create_trial(
            state=TrialState.FAIL, constraints={name: float(v) for name, v in violation.items()}
        )
        for name, value in ended.system_attrs.items():
            self.storage.set_trial_system_attr(trial, name, value)
        self.storage.set_trial_state_values(trial, STATES[outcome.state], outcome.values)


class TPE(OptunaSampler):
    """Multivariate TPE with constant liar (optuna.samplers.TPESampler).

    The univariate default of Optuna repeats 17% of its suggestions on several objectives.
    """

    def sampler_for(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                multivariate=True, n_startup_trials=STARTUP_TRIALS, seed=seed
            )


class Random(OptunaSampler):
    """Uniform draws, choice by choice (optuna.samplers.RandomSampler)."""

    def sampler_for(self, seed: int) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed)


class NSGA2(OptunaSampler):
    """NSGA-II with constrained domination (optuna.samplers.NSGAIISampler).

    Choices that every candidate has are crossed over and mutated, conditional ones drawn.
    """

    def sampler_for(self, seed: int) -> BaseSampler:
        return _NSGAII(seed, self.parents)

    def _rebuild(self) -> None:
        super()._rebuild()
        self.parents: dict[tuple[int, ...], list[FrozenTrial]] = {}


class _NSGAII(optuna.samplers.NSGAIISampler):
    """NSGA-II whose generations are POPULATION complete trials each, in the order of their numbers.

    Optuna notes a trial's generation when it is asked, so that it depends on the order in which
    trials ended. `parents` keeps selections by the trials that they were made from.
    """

    def __init__(self, seed: int, parents: dict[tuple[int, ...], list[FrozenTrial]]) -> None:
        super().__init__(population_size=POPULATION, seed=seed)
        self._parents = parents

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        return len(_complete(study)) // POPULATION

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return _complete(study)[generation * POPULATION : (generation + 1) * POPULATION]

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        if generation == 0:
            return []
        pool = self.get_population(study, generation - 1)
        pool += self.get_parent_population(study, generation - 1)
        key = tuple(trial.number for trial in pool)
        if key not in self._parents:
            self._parents[key] = self.select_parent(study, generation)
        return self._parents[key]


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


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
    """A value as Optuna holds it: a choice by its label, since it may be a list."""
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
