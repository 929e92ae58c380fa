"""Quality tasks on real small models: bits per byte, recall, and their intervals over seeds."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from archfront.builders.model import build
from archfront.profilers.corpus import Corpus, load_corpus
from archfront.profilers.quality import recall, text
from archfront.profilers.quality.measure import measure
from archfront.profilers.quality.recall import RecallRun, RecallTask
from archfront.profilers.quality.statistics import mean_interval, student_95
from archfront.profilers.quality.task import Run, Task
from archfront.profilers.quality.tasks import task_class, tasks_for
from archfront.profilers.quality.text import TextRun, TextTask
from archfront.profilers.training import OutOfTime
from archfront.search_space.accounting import cache_bytes_at, parameters
from archfront.search_space.architecture import Architecture
from archfront.search_space.document import InputError
from archfront.search_space.metrics import METRICS
from archfront.search_space.plan import Plan, RecallSettings, TextSettings

FAR = time.monotonic() + 3600
CPU = torch.device("cpu")
SHORT = TextSettings(context=32, batch=4, steps=3)
EASY = RecallSettings(pairs=2, vocabulary=8, context=12, batch=32, steps=80, learning_rate=8e-3)
BRIEF = EASY.model_copy(update={"steps": 3})


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(None)


def text_run(proxy: Architecture, settings: TextSettings, corpus: Corpus, seed: int = 0) -> TextRun:
    return TextRun(build(proxy, seed=seed), settings, corpus, seed=seed, deadline=FAR)


def recall_run(proxy: Architecture, settings: RecallSettings, seed: int = 0) -> RecallRun:
    return RecallRun(build(proxy, seed=seed), settings, seed=seed, deadline=FAR)


def final_bits(proxy: Architecture, settings: TextSettings, corpus: Corpus, seed: int = 0) -> float:
    return text_run(proxy, settings, corpus, seed).advance(1.0)["bits_per_byte"]


def final_recall(proxy: Architecture, settings: RecallSettings, seed: int = 0) -> float:
    return recall_run(proxy, settings, seed).advance(1.0)["recall"]


def unigram_bits(corpus: Corpus) -> float:
    """Bits per byte of the held-out bytes under the frequencies of the training bytes."""
    frequency = (np.bincount(corpus.train, minlength=256) + 1) / (len(corpus.train) + 256)
    return float(-np.log2(frequency)[corpus.held_out].mean())


class TestText:
    def test_an_untrained_model_needs_about_eight_bits_per_byte(self, architecture, corpus):
        settings = SHORT.model_copy(update={"steps": 1, "learning_rate": 1e-9})
        assert final_bits(architecture("*-"), settings, corpus) == pytest.approx(8, abs=0.2)

    def test_a_trained_model_beats_the_unigram_frequencies(self, architecture, corpus):
        settings = TextSettings(context=64, batch=8, steps=60, learning_rate=8e-3)
        bits = final_bits(architecture("*-M-"), settings, corpus)
        assert bits < unigram_bits(corpus) - 0.3

    def test_bits_are_nats_over_ln_2_and_bytes(self, architecture, corpus):
        """A model that gives every byte the same probability needs eight bits on any text."""
        model = build(architecture("-"), seed=0)
        for parameter in model.parameters():
            parameter.data.zero_()
        settings = SHORT.model_copy(update={"learning_rate": 1e-30})
        run = TextRun(model, settings, corpus, seed=0, deadline=FAR)
        assert run.advance(1.0)["bits_per_byte"] == pytest.approx(8, abs=1e-5)

    def test_the_proxy_parameters_are_those_of_the_model_built(self, architecture):
        proxy = architecture("*-M-")
        task = TextTask(SHORT)
        run = task.start(proxy, seed=0, device=CPU, deadline=FAR)
        built = sum(parameter.numel() for parameter in run.model.parameters())
        assert task.count(proxy) == {"proxy_parameters": built}
        assert built == parameters(proxy).total

    def test_the_data_order_depends_on_the_seed_alone(self, corpus):
        first, again = (text.training_windows(corpus, SHORT, 3) for _ in range(2))
        other = text.training_windows(corpus, SHORT, 4)
        for _ in range(5):
            windows_BT = next(first)
            assert torch.equal(windows_BT, next(again))
            assert not torch.equal(windows_BT, next(other))

    def test_a_longer_run_starts_with_the_same_data(self, corpus):
        longer = SHORT.model_copy(update={"steps": 300})
        first, second = (next(text.training_windows(corpus, s, 0)) for s in (SHORT, longer))
        assert torch.equal(first, second)

    def test_held_out_windows_do_not_overlap_and_come_from_the_held_out_part(self):
        noise = np.random.default_rng(0).integers(256, size=40_000).astype(np.uint8)
        corpus = Corpus(name="noise", sha256="", train=noise[:20_000], held_out=noise[20_000:])
        windows_WT = text.held_out_windows(corpus, 128)
        assert windows_WT.shape == (text.HELD_OUT_WINDOWS, 129)
        held_out = corpus.held_out.tobytes()
        starts = [held_out.find(bytes(window.tolist())) for window in windows_WT]
        assert starts[0] >= 0
        assert all(later - start >= 129 for start, later in pairwise(starts))

    def test_a_corpus_too_small_for_the_context_is_rejected(self, tmp_path: Path):
        (tmp_path / "tale.txt").write_text("Once upon a time there was very little text.")
        settings = SHORT.model_copy(update={"corpus": str(tmp_path / "tale.txt")})
        with pytest.raises(InputError, match="must be longer than the context"):
            TextTask(settings)


class TestRecall:
    @pytest.mark.parametrize("settings", [EASY, RecallSettings(pairs=4, vocabulary=17, context=21)])
    def test_every_query_is_a_key_and_its_answer_is_the_value_of_that_key(
        self, settings: RecallSettings
    ):
        tokens_BT, answers_BQ = recall.associations(settings, 50, np.random.default_rng(0))
        assert tokens_BT.shape == (50, settings.context)
        assert answers_BQ.shape == (50, settings.context - 2 * settings.pairs)
        half = settings.vocabulary // 2
        for tokens, answers in zip(tokens_BT.tolist(), answers_BQ.tolist(), strict=True):
            pairs, queries = tokens[: 2 * settings.pairs], tokens[2 * settings.pairs :]
            value_of = dict(zip(pairs[::2], pairs[1::2], strict=True))
            assert len(value_of) == settings.pairs
            assert max(value_of) < half <= min(value_of.values())
            assert max(value_of.values()) < settings.vocabulary
            assert answers == [value_of[query] for query in queries]
            asked = Counter(queries)
            assert set(asked) == set(value_of)
            assert max(asked.values()) - min(asked.values()) <= 1

    def test_held_out_sequences_are_not_those_of_the_training(self):
        drawn = [
            recall.associations(EASY, 8, np.random.default_rng([0, stream]))[0]
            for stream in (recall.TRAINING_STREAM, recall.HELD_OUT_STREAM)
        ]
        assert not torch.equal(*drawn)

    def test_the_stem_sees_no_later_token(self):
        stem = recall.Stem(8, 64, seed=0, device=CPU)
        tokens_BT = torch.arange(12).view(1, 12) % 8
        changed_BT = tokens_BT.clone()
        changed_BT[0, 6] = 7
        differs = (stem.embed(tokens_BT) != stem.embed(changed_BT)).any(-1)[0]
        assert differs.nonzero().flatten().tolist() == [6, 7, 8, 9]

    def test_attention_learns_an_easy_recall(self, architecture):
        assert final_recall(architecture("*-"), EASY) > 0.9

    def test_a_model_without_a_mixer_stays_at_chance(self, architecture):
        """The stem adds the previous token, so the model may know which two values occur."""
        assert final_recall(architecture("-"), EASY) < 1 / EASY.pairs + 0.05

    def test_the_cache_bytes_are_those_at_the_context_of_the_task(self, architecture):
        proxy = architecture("G-*-")
        counted = RecallTask(EASY).count(proxy)
        assert counted == {"recall_cache_bytes": cache_bytes_at(proxy, EASY.context)}


@pytest.mark.parametrize("name", Plan().tasks)
class TestEveryTask:
    """The contract of task.py."""

    def test_the_metrics_are_those_listed(self, architecture, name: str):
        proxy, task = architecture("*-"), short_task(name)
        counted, measured = task.count(proxy), start(task, proxy).advance(1.0)
        assert not counted.keys() & measured.keys()
        assert counted.keys() | measured.keys() == set(task.metrics) <= METRICS.keys()

    @pytest.mark.parametrize("pattern", ["*-G-", "M-"])
    def test_the_same_seed_gives_the_same_numbers_bit_by_bit(
        self, architecture, name: str, pattern: str
    ):
        task, proxy = short_task(name), architecture(pattern)
        first, again, other = (
            repeatable(start(task, proxy, seed).advance(1.0)) for seed in (0, 0, 1)
        )
        assert first == again != other

    @pytest.mark.parametrize("pattern", ["*-*-", "G-M-", "W-*E"])
    def test_a_rung_in_between_changes_no_later_number(self, architecture, name: str, pattern: str):
        expert = {"kind": "moe", "n_experts": 4, "top_k": 2, "d_expert": 32}
        blocks = {"E": {**expert, "router": "sigmoid_bias"}} if "E" in pattern else {}
        proxy, task = architecture(pattern, blocks=blocks), short_task(name)
        whole, in_parts, cut = (start(task, proxy) for _ in range(3))
        expected = repeatable(whole.advance(1.0))
        in_parts.advance(0.25)
        assert repeatable(in_parts.advance(0.5)) == repeatable(cut.advance(0.5)) != expected
        assert repeatable(in_parts.advance(1.0)) == expected

    def test_no_global_random_state_is_read_or_set(self, architecture, name: str):
        task, proxy = short_task(name), architecture("*-")
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(repeatable(start(task, proxy).advance(1.0)))
            assert torch.equal(torch.get_rng_state(), before)
        assert found[0] == found[1]

    def test_the_deadline_ends_a_run(self, architecture, name: str):
        passed = time.monotonic() - 1
        run = short_task(name).start(architecture("*-"), seed=0, device=CPU, deadline=passed)
        with pytest.raises(OutOfTime):
            run.advance(1.0)


def short_task(name: str) -> Task[Any]:
    settings = Plan().tasks[name]
    return task_class(name)(settings.model_copy(update={"steps": 8}))


def start(task: Task[Any], proxy: Architecture, seed: int = 0) -> Run:
    return task.start(proxy, seed=seed, device=CPU, deadline=FAR)


def repeatable(values: Mapping[str, float]) -> dict[str, float]:
    """The values that do not depend on time."""
    return {name: value for name, value in values.items() if not name.endswith("_ms")}


class TestChoiceOfTasks:
    def test_every_task_of_the_plan_has_its_implementation(self):
        for name, settings in Plan().tasks.items():
            task = task_class(name)
            assert issubclass(task, Task)
            assert set(task.metrics) <= METRICS.keys()
            assert task(settings).settings is settings

    def test_no_metric_belongs_to_two_tasks(self):
        names = [metric for name in Plan().tasks for metric in task_class(name).metrics]
        assert len(names) == len(set(names))

    @pytest.mark.parametrize(
        ("metrics", "chosen"),
        [
            (None, [TextTask, RecallTask]),
            ({"recall", "decode_ms"}, [RecallTask]),
            ({"bits_per_byte"}, [TextTask]),
            ({"proxy_parameters", "recall_cache_bytes"}, [TextTask, RecallTask]),
            ({"decode_ms"}, []),
        ],
    )
    def test_a_task_is_chosen_when_one_of_its_metrics_is_needed(self, metrics, chosen):
        assert [type(task) for task in tasks_for(Plan(), metrics)] == chosen

    def test_data_of_a_task_that_is_not_needed_is_not_read(self):
        plan = Plan(text=TextSettings(corpus="no/such/file"))
        assert [type(task) for task in tasks_for(plan, {"recall"})] == [RecallTask]
        with pytest.raises(InputError, match="no such file"):
            tasks_for(plan, {"bits_per_byte"})


class TestMeasurements:
    def test_one_seed_gives_every_number_but_no_interval(self, architecture):
        plan = Plan(text=SHORT, recall=BRIEF)
        (found,) = measured(architecture("(G-G-*-)x2"), plan)
        by_name = {m.name: m for m in found}
        assert by_name.keys() == {
            "bits_per_byte", "recall", "recall_cache_bytes", "proxy_step_ms", "proxy_parameters"
        }  # fmt: skip
        assert by_name.keys() <= METRICS.keys()
        for m in found:
            counted = m.provenance == "counted"
            assert (m.low, m.high) == ((m.value, m.value) if counted else (None, None))
            assert (m.device is None) == counted
            assert m.rung == (None if counted else 0)

    def test_more_seeds_give_their_mean_in_a_student_interval(self, architecture, corpus):
        plan = Plan(text=SHORT, recall=BRIEF, seeds=3)
        proxy = architecture("*-")
        (found,) = measured(proxy, plan, seed=5)
        bits = next(m for m in found if m.name == "bits_per_byte")
        each = [final_bits(proxy, SHORT, corpus, seed) for seed in (5, 6, 7)]
        assert bits.value == mean(each)
        half_width = 2.920 * np.std(each, ddof=1) / math.sqrt(3)
        assert bits.low == pytest.approx(bits.value - half_width)
        assert bits.high == pytest.approx(bits.value + half_width)

    def test_a_model_is_built_once_per_task_and_seed_whatever_the_rungs(
        self, architecture, monkeypatch
    ):
        built: list[int] = []
        for module in (text, recall):
            monkeypatch.setattr(module, "build", lambda *a, seed, **k: (
                built.append(seed), build(*a, seed=seed, **k)
            )[1])  # fmt: skip
        rungs = [{"fraction": 0.4}, {"fraction": 1.0}]
        plan = Plan(text=SHORT, recall=BRIEF, seeds=2, rungs=rungs)
        assert len(list(measured(architecture("*-"), plan))) == 2
        assert sorted(built) == [0, 0, 1, 1]


def measured(architecture: Architecture, plan: Plan, seed: int = 0):
    tasks = tasks_for(plan, None)
    return measure(architecture, tasks, plan, seed=seed, device=CPU, deadline=FAR)


@pytest.mark.parametrize(("freedom", "t"), [(1, 6.314), (9, 1.833), (10, 1.812), (30, 1.697)])
def test_the_quantile_of_students_t(freedom: int, t: float):
    assert student_95(freedom) == pytest.approx(t, abs=1e-3)


def test_a_single_value_has_no_interval():
    assert mean_interval([2.5]) == (2.5, None, None)
