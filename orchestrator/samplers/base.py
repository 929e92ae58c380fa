"""The sampler protocol: suggestions, outcomes, and the contract of ask, tell and restore."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...profilers.report import Measurement
from ...search_space.architecture import Architecture
from ...search_space.space import SearchSpace

Direction = Literal["lower", "higher"]
Price = Callable[[Architecture], tuple[Measurement, ...]]
OutcomeState = Literal["complete", "failed", "rejected", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A candidate that a sampler proposes.

    `architecture` is None where the parameters violate the space (a constraint on architectures,
    the budget, the schema). `metrics` are the architecture's static metrics. `rejection` says why
    the candidate must not run: it violates the space or the target cannot run it.
    """

    number: int
    parameters: Mapping[str, Any]
    architecture: Architecture | None
    metrics: tuple[Measurement, ...] = ()
    rejection: str | None = None

    def rejected(self) -> "Outcome":
        """The outcome to give back when this suggestion is not run."""
        return Outcome(
            number=self.number,
            parameters=self.parameters,
            state="invalid" if self.architecture is None else "rejected",
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    - `complete`: `values` are its objectives, in the order of the study's; `violation` is, by
      constraint, how far its metrics are beyond the bound (feasible where none is above 0).
    - `failed`: it ran and has no values.
    - `rejected`: it did not run: a duplicate, or known to be infeasible from its static metrics.
    - `invalid`: it did not run, since its parameters violate the space.
    """

    number: int
    parameters: Mapping[str, Any]
    state: OutcomeState
    values: tuple[float, ...] | None = None
    violation: Mapping[str, float] | None = None


class Sampler(ABC):
    """Proposes the candidates of one study, by ask and tell. Subclass it to add a sampler.

    A trial has a number: 0, 1, 2, ... in the study, each asked for once and in ascending order.
    The life of a trial:

    1. `ask(number)` returns its Suggestion. The trial is in flight from here to its `tell`.
    2. The caller runs it or rejects it. It rejects a suggestion with a `rejection`, one whose
       architecture an earlier trial has (a duplicate), and one whose static metrics violate a
       constraint of the space (infeasible).
    3. While it runs it may report at rungs. These reports go to the store and the scheduler; a
       sampler has no part in them.
    4. `tell(outcome)` ends it, once for every number, be it complete, failed or rejected.

    Any number of trials may be in flight, and they may end in any order. A rejected trial is ended
    before the next `ask`.

    Resume: `restore` is called at most once, before the first `ask`, with all that an earlier
    sampler of the study knew. From there on the new sampler suggests what the earlier one would
    have suggested.

    Determinism: a suggestion is a function of the constructor's arguments, the number, the set of
    outcomes given so far and the set of trials in flight. It does not depend on the order in which
    they ended, on the clock or on the process.

    What to explore is the sampler's business: when to sample at random, how much history to keep,
    whether to avoid candidates that would be rejected. It has what it needs for that: the space
    with its constraints, and `price`.

    A sampler needs no store and no Ray:

        sampler = TPE(space, directions=["lower", "higher"], seed=0, price=price)
        for number in range(100):
            suggestion = sampler.ask(number)
            if suggestion.rejection:
                sampler.tell(suggestion.rejected())
                continue
            values = train(suggestion.architecture)
            sampler.tell(Outcome(number=number, parameters=suggestion.parameters,
                                 state="complete", values=values))

    Instances are not shared between threads.
    """

    def __init__(
        self, space: SearchSpace, *, directions: Sequence[Direction], seed: int, price: Price
    ) -> None:
        """A sampler of `space`.

        `directions` are the better sides of the objectives, in their order. `price` returns the
        static metrics of an architecture (profilers/static_metrics.py: a few milliseconds) and
        raises ValueError when the target cannot run it; a sampler may price any candidate it
        considers.
        """
        self.space, self.directions, self.seed = space, tuple(directions), seed
        self.price = price

    @abstractmethod
    def ask(self, number: int) -> Suggestion:
        """The candidate of a trial, priced; the trial is in flight until `tell`."""

    @abstractmethod
    def tell(self, outcome: Outcome) -> None:
        """End a trial in flight. Raises ValueError for a number that is not in flight."""

    @abstractmethod
    def restore(
        self, outcomes: Sequence[Outcome], in_flight: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Take over a study: the outcomes so far, and the parameters of trials in flight by number.

        Raises ValueError when a parameter has a value that the space does not offer.
        """

    def suggestion(
        self, number: int, parameters: Mapping[str, Any], architecture: Architecture
    ) -> Suggestion:
        """The suggestion of an architecture, with its price or the reason why it has none."""
        try:
            metrics, rejection = self.price(architecture), None
        except ValueError as error:
            metrics, rejection = (), f"infeasible: {error}"
        return Suggestion(
            number=number,
            parameters=parameters,
            architecture=architecture,
            metrics=metrics,
            rejection=rejection,
        )

    def invalid(self, number: int, parameters: Mapping[str, Any], reason: str) -> Suggestion:
        """The suggestion of parameters that violate the space."""
        return Suggestion(
            number=number,
            parameters=parameters,
            architecture=None,
            rejection=f"infeasible: {reason}",
        )
