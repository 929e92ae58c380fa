"""The sampler protocol: one set of tests that every sampler passes; then what only some do."""

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any, get_args

import pytest

from archfront.orchestrator.samplers.base import Direction, Outcome, Sampler, Suggestion
from archfront.orchestrator.samplers.registry import SAMPLERS
from archfront.profilers.report import Measurement
from archfront.search_space.architecture import Architecture
from archfront.search_space.check import check_space
from archfront.search_space.document import parse_document
from archfront.search_space.space import SearchSettings, SearchSpace
from archfront.search_space.warm_start import starts

DIRECTIONS: tuple[Direction, ...] = ("lower", "higher")
SMALL_SIZE = 8  # candidates of the small space


def price(architecture: Architecture) -> tuple[Measurement, ...]:
    """Stands in for the static metrics."""
    layers = float(architecture.num_layers)
    return (Measurement(name="total_params", value=layers, provenance="counted"),)


def chance(key: str, salt: str = "") -> float:
    """A number in 0..1 that follows from a key."""
    return int(hashlib.sha256((salt + key).encode()).hexdigest()[:8], 16) / 2**32


def values_of(architecture: Architecture) -> tuple[float, float]:
    """Two objectives with a trade-off and some noise."""
    attention = sum(s in "*WL" for s in architecture.symbols) / architecture.num_layers
    key = architecture.key
    return 1 + attention + 0.2 * chance(key), attention**0.5 + 0.2 * chance(key, "b")


class Search:
    """A search without store and Ray: a sampler, its trials in flight and their outcomes."""

    def __init__(self, sampler: Sampler, *, fails: Callable[[int], bool] = lambda n: n % 7 == 5):
        self.sampler, self.fails = sampler, fails
        self.number = 0
        self.seen: dict[str, int] = {}
        self.flying: list[Suggestion] = []
        self.outcomes: list[Outcome] = []
        self.asked: list[Suggestion] = []

    def run(self, count: int, *, at_once: int = 1) -> "Search":
        """Ask for `count` more suggestions with at most `at_once` in flight."""
        for _ in range(count):
            while len(self.flying) >= at_once:
                # The oldest and the newest in turn.
                self.end(self.flying.pop(0 if self.number % 3 else -1))
            suggestion = self.sampler.ask(self.number)
            self.number += 1
            self.asked.append(suggestion)
            architecture = suggestion.architecture
            if suggestion.rejection or architecture is None or architecture.key in self.seen:
                self.tell(suggestion.rejected())
                continue
            self.seen[architecture.key] = suggestion.number
            self.flying.append(suggestion)
        return self

    def end(self, suggestion: Suggestion) -> None:
        """End a trial as failed, as infeasible or as feasible."""
        number, parameters = suggestion.number, suggestion.parameters
        architecture = suggestion.architecture
        assert architecture is not None
        if self.fails(number):
            self.tell(Outcome(number=number, parameters=parameters, state="failed"))
            return
        self.tell(
            Outcome(
                number=number,
                parameters=parameters,
                state="complete",
                values=values_of(architecture),
                violation={"memory_gib": chance(architecture.key, "c") - 0.8},
            )
        )

    def tell(self, outcome: Outcome) -> None:
        self.sampler.tell(outcome)
        self.outcomes.append(outcome)

    def resumed(self, sampler: Sampler) -> "Search":
        """The same search with a sampler that is restored from what a store would hold."""
        other = Search(sampler, fails=self.fails)
        other.number, other.seen = self.number, dict(self.seen)
        other.flying, other.outcomes = list(self.flying), list(self.outcomes)
        in_flight = {s.number: json.loads(json.dumps(s.parameters)) for s in self.flying}
        plain = [
            Outcome(
                number=o.number,
                parameters=json.loads(json.dumps(o.parameters)),
                state=o.state,
                values=o.values,
                violation=o.violation,
            )
            for o in self.outcomes
        ]
        sampler.restore(sorted(plain, key=lambda outcome: outcome.number), in_flight)
        return other


def said(suggestions: list[Suggestion]) -> list[tuple[int, str, str | None]]:
    """Suggestions as text, to compare."""
    return [(s.number, json.dumps(s.parameters), s.rejection) for s in suggestions]


@pytest.fixture
def space(tiny_space: str) -> SearchSpace:
    """The demo's space, which is conditional."""
    return check_space(parse_document(tiny_space, source="tiny.yaml"))


@pytest.fixture
def small(small_space: str) -> SearchSpace:
    return check_space(parse_document(small_space, source="small.yaml"))


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    def make(self, name: str, space: SearchSpace, **options: Any) -> Sampler:
        given = {"directions": DIRECTIONS, "seed": 3, "price": price} | options
        return SAMPLERS[name](space, **given)

    def test_the_same_seed_gives_the_same_suggestions(self, name: str, space: SearchSpace) -> None:
        one, two, other = (
            said(Search(self.make(name, space, seed=seed)).run(40).asked) for seed in (3, 3, 4)
        )
        assert one == two
        assert one != other

    def test_a_suggestion_does_not_depend_on_the_order_in_which_trials_ended(
        self, name: str, space: SearchSpace
    ) -> None:
        next_ones = []
        for seed in range(3):
            search = Search(self.make(name, space)).run(50, at_once=50)
            random.Random(seed).shuffle(search.flying)
            for suggestion in search.flying:
                search.end(suggestion)
            next_ones.append(said([search.sampler.ask(50)]))
        assert next_ones[0] == next_ones[1] == next_ones[2]

    @pytest.mark.parametrize("at_once", [1, 4])
    @pytest.mark.parametrize("cut", [3, 29, 64])
    def test_a_restored_sampler_continues_as_the_uninterrupted_one(
        self, name: str, space: SearchSpace, at_once: int, cut: int
    ) -> None:
        search = Search(self.make(name, space, window=30)).run(cut, at_once=at_once)
        resumed = search.resumed(self.make(name, space, window=30)).run(40, at_once=at_once)
        whole = search.run(40, at_once=at_once).asked[cut:]
        assert said(resumed.asked) == said(whole)

    def test_a_suggestion_is_what_the_space_makes_of_its_parameters(
        self, name: str, space: SearchSpace
    ) -> None:
        suggestions = Search(self.make(name, space)).run(60).asked
        assert len({frozenset(s.parameters) for s in suggestions}) > 5  # the space is conditional
        for suggestion in suggestions:
            left = dict(suggestion.parameters)
            if suggestion.architecture is not None:
                drawn = space.draw(lambda choice, _, left=left: left.pop(choice))
                assert drawn == suggestion.architecture
                assert left == {}

    def test_a_violated_space_is_an_invalid_suggestion_and_not_priced(
        self, name: str, space: SearchSpace
    ) -> None:
        priced: list[str] = []

        def count(architecture: Architecture) -> tuple[Measurement, ...]:
            priced.append(architecture.key)
            return price(architecture)

        suggestions = Search(self.make(name, space, price=count)).run(60).asked
        invalid = [s for s in suggestions if s.architecture is None]
        assert invalid
        assert all((s.rejection or "").startswith("infeasible: ") for s in invalid)
        assert all(s.rejected().state == "invalid" for s in invalid)
        made = [s.architecture for s in suggestions if s.architecture is not None]
        assert set(priced) == {architecture.key for architecture in made}

    def test_a_suggestion_has_the_price_of_its_architecture(
        self, name: str, space: SearchSpace
    ) -> None:
        for suggestion in Search(self.make(name, space)).run(20).asked:
            if suggestion.architecture is not None:
                assert suggestion.metrics == price(suggestion.architecture)

    def test_an_architecture_that_the_target_cannot_run_is_rejected(
        self, name: str, space: SearchSpace
    ) -> None:
        def without_experts(architecture: Architecture) -> tuple[Measurement, ...]:
            if "E" in architecture.pattern:
                raise ValueError("no experts on this target")
            return price(architecture)

        search = Search(self.make(name, space, price=without_experts)).run(60)
        rejected = [s for s in search.asked if s.rejection and s.architecture is not None]
        assert rejected
        assert {s.rejection for s in rejected} == {"infeasible: no experts on this target"}
        assert {s.rejected().state for s in rejected} == {"rejected"}
        assert all(s.metrics == () for s in rejected)

    def test_duplicates_and_faults_do_not_stop_it_from_finding_every_candidate(
        self, name: str, small: SearchSpace
    ) -> None:
        search = Search(self.make(name, small), fails=lambda number: number % 2 == 0).run(200)
        assert len(search.seen) == SMALL_SIZE
        assert {o.state for o in search.outcomes} == {"complete", "failed", "rejected"}

    def test_a_study_of_faults_goes_on(self, name: str, space: SearchSpace) -> None:
        search = Search(self.make(name, space), fails=lambda number: True).run(60, at_once=3)
        assert len(search.seen) > 20

    def test_the_first_suggestions_are_the_warm_starts(self, name: str, small_space: str) -> None:
        text = small_space + "warm_start: [llama3_8b, qwen3_next_80b_a3b]\n"
        space = check_space(parse_document(text, source="small.yaml"))
        sampler = self.make(name, space)
        for number, start in enumerate(starts(space)):
            suggestion = sampler.ask(number)
            assert suggestion.architecture == start.architecture
            assert suggestion.parameters == start.parameters
        assert sampler.ask(2).architecture is not None

    def test_trials_in_flight_survive_the_end_of_the_window(
        self, name: str, space: SearchSpace
    ) -> None:
        search = Search(self.make(name, space, window=10)).run(4, at_once=4)
        stragglers, search.flying = search.flying, []
        search.run(50, at_once=2)
        for suggestion in stragglers:
            search.end(suggestion)
        with pytest.raises(ValueError, match=f"trial {stragglers[0].number} is not in flight"):
            search.end(stragglers[0])
        search.run(5)

    @pytest.mark.slow
    def test_2100_suggestions_with_two_in_flight(self, name: str, space: SearchSpace) -> None:
        # Most trials fail, so that the models stay small and the test short.
        search = Search(self.make(name, space), fails=lambda number: number % 25 > 0)
        search.run(2100, at_once=2)
        assert len(search.flying) == 2
        resumed = search.resumed(self.make(name, space)).run(5, at_once=2)
        assert said(search.run(5, at_once=2).asked[2100:]) == said(resumed.asked)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
class TestModels:
    """Samplers that learn from outcomes."""

    def make(self, name: str, space: SearchSpace, seed: int = 0) -> Sampler:
        return SAMPLERS[name](space, directions=["lower", "higher"], seed=seed, price=price)

    def test_it_improves_on_random_draws(self, name: str, space: SearchSpace) -> None:
        def late_mean(sampler: Sampler) -> float:
            """The mean of the later trials, of an objective to which every choice adds its part."""
            late: list[float] = []
            for number in range(160):
                suggestion = sampler.ask(number)
                chosen = suggestion.parameters
                parts = [chance(f"{choice}={value}") for choice, value in chosen.items()]
                value = sum(parts) / len(parts)
                if suggestion.rejection:
                    sampler.tell(suggestion.rejected())
                    continue
                late += [value] if number >= 80 else []
                sampler.tell(
                    Outcome(number=number, parameters=chosen, state="complete", values=(value,))
                )
            return sum(late) / len(late)

        def means(sampler: str) -> float:
            make = SAMPLERS[sampler]
            return sum(
                late_mean(make(space, directions=["lower"], seed=seed, price=price))
                for seed in range(3)
            )

        assert means(name) < means("random") - 0.1

    def test_after_a_rejected_suggestion_the_next_is_drawn_at_random(
        self, name: str, space: SearchSpace
    ) -> None:
        def after(count: int, state: Any) -> list[str]:
            sampler = self.make(name, space)
            search = Search(sampler, fails=lambda number: number > count)
            search.run(60, at_once=60)
            for suggestion in search.flying:
                search.end(suggestion)
            suggested = []
            for number in range(60, 66):
                suggestion = sampler.ask(number)
                suggested.append(json.dumps(suggestion.parameters))
                sampler.tell(Outcome(number=number, parameters=suggestion.parameters, state=state))
            return suggested[1:]

        assert after(60, "rejected") == after(30, "rejected")  # whatever was learned
        assert after(60, "failed") != after(30, "failed")


def test_the_space_file_names_the_samplers_of_the_registry() -> None:
    assert get_args(SearchSettings.model_fields["sampler"].annotation) == tuple(SAMPLERS)
