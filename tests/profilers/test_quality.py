"""What a candidate is worth: bits per byte and recall, on real small models."""

import math
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch

from archfront.profilers import quality
from archfront.profilers.corpus import Corpus, load_corpus
from archfront.profilers.training import OutOfTime
from archfront.search_space.accounting import parameters
from archfront.search_space.document import InputError
from archfront.search_space.metrics import METRICS
from archfront.search_space.plan import Plan, RecallTask, TextTask

FAR = time.monotonic() + 3600
ON_CPU = {"device": torch.device("cpu"), "deadline": FAR}
SHORT = TextTask(context=32, batch=4, steps=3)
EASY = RecallTask(pairs=2, vocabulary=8, context=12, batch=32, steps=80, learning_rate=8e-3)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(None)


def unigram_bits(corpus: Corpus) -> float:
    """Bits per byte of the held-out bytes under the frequencies of the training bytes."""
    share = (np.bincount(corpus.train, minlength=256) + 1) / (len(corpus.train) + 256)
    return float(-np.log2(share)[corpus.held_out].mean())


def test_an_untrained_model_needs_about_eight_bits_a_byte(architecture, corpus):
    task = SHORT.model_copy(update={"steps": 1, "learning_rate": 1e-9})
    result = quality.bits_per_byte(architecture("*-"), task, corpus, seed=0, **ON_CPU)
    assert result.bits_per_byte == pytest.approx(8, abs=0.2)
    assert 0 < result.standard_error < 0.05


def test_a_trained_model_beats_the_unigram_frequencies(architecture, corpus):
    task = TextTask(context=64, batch=8, steps=60, learning_rate=8e-3)
    result = quality.bits_per_byte(architecture("*-M-"), task, corpus, seed=0, **ON_CPU)
    assert result.bits_per_byte < unigram_bits(corpus) - 0.3
    assert result.parameters == parameters(architecture("*-M-")).total


def test_bits_are_nats_over_ln_2_and_bytes(architecture, corpus, monkeypatch):
    """A model that gives every byte the same chance needs eight bits, whatever is read."""
    model = quality.build(architecture("-"), seed=0)
    for parameter in model.parameters():
        parameter.data.zero_()
    monkeypatch.setattr(quality, "build", lambda *_, **__: model)
    task = SHORT.model_copy(update={"learning_rate": 1e-30})
    result = quality.bits_per_byte(architecture("-"), task, corpus, seed=0, **ON_CPU)
    assert result.bits_per_byte == pytest.approx(8, abs=1e-5)


def test_the_data_order_depends_on_the_seed_alone(corpus):
    first, again = (quality.training_windows(corpus, SHORT, 3) for _ in range(2))
    other = quality.training_windows(corpus, SHORT, 4)
    for _ in range(5):
        windows_BT = next(first)
        assert torch.equal(windows_BT, next(again))
        assert not torch.equal(windows_BT, next(other))


def test_a_longer_run_starts_with_the_same_data(corpus):
    longer = SHORT.model_copy(update={"steps": 300})
    first, second = (next(quality.training_windows(corpus, t, 0)) for t in (SHORT, longer))
    assert torch.equal(first, second)


def test_held_out_windows_do_not_overlap_and_come_from_the_held_out_part():
    noise = np.random.default_rng(0).integers(256, size=40_000).astype(np.uint8)
    corpus = Corpus(name="noise", sha256="", train=noise[:20_000], held_out=noise[20_000:])
    windows_WT = quality.held_out_windows(corpus, 128)
    assert windows_WT.shape == (quality.HELD_OUT_WINDOWS, 129)
    held_out = corpus.held_out.tobytes()
    places = [held_out.find(bytes(window.tolist())) for window in windows_WT]
    assert places[0] >= 0
    assert all(later - place >= 129 for place, later in pairwise(places))


@pytest.mark.parametrize("pattern", ["*-G-", "M-"])
def test_the_same_seed_gives_the_same_numbers_bit_by_bit(architecture, corpus, pattern):
    def numbers(seed: int) -> tuple[float, float]:
        made = architecture(pattern)
        text = quality.bits_per_byte(made, SHORT, corpus, seed=seed, **ON_CPU)
        few = EASY.model_copy(update={"steps": 3})
        return text.bits_per_byte, quality.recall(made, few, seed=seed, **ON_CPU)

    assert numbers(0) == numbers(0)
    assert numbers(0)[0] != numbers(1)[0]


def test_a_corpus_too_small_for_the_context_is_refused(architecture, tmp_path: Path):
    (tmp_path / "tale.txt").write_text("Once upon a time there was very little text.")
    small = load_corpus(str(tmp_path / "tale.txt"))
    with pytest.raises(InputError, match="must be longer than the context"):
        quality.bits_per_byte(architecture("*-"), SHORT, small, seed=0, **ON_CPU)


@pytest.mark.parametrize("task", [EASY, RecallTask(pairs=4, vocabulary=17, context=21)])
def test_every_query_was_a_key_and_its_answer_is_the_value_of_that_key(task: RecallTask):
    tokens_BT, answers_BQ = quality.associations(task, 50, np.random.default_rng(0))
    assert tokens_BT.shape == (50, task.context)
    assert answers_BQ.shape == (50, task.context - 2 * task.pairs)
    half = task.vocabulary // 2
    for tokens, answers in zip(tokens_BT.tolist(), answers_BQ.tolist(), strict=True):
        told, queries = tokens[: 2 * task.pairs], tokens[2 * task.pairs :]
        value_of = dict(zip(told[::2], told[1::2], strict=True))
        assert len(value_of) == task.pairs
        assert max(value_of) < half <= min(value_of.values())
        assert max(value_of.values()) < task.vocabulary
        assert answers == [value_of[query] for query in queries]
        asked = Counter(queries)
        assert set(asked) == set(value_of)
        assert max(asked.values()) - min(asked.values()) <= 1


def test_fresh_sequences_are_not_those_of_the_training():
    drawn = [
        quality.associations(EASY, 8, np.random.default_rng([0, stream]))[0]
        for stream in (quality.TRAINING, quality.HELD_OUT)
    ]
    assert not torch.equal(*drawn)


def test_the_stem_looks_at_no_later_token():
    stem = quality.Stem(8, 64, seed=0, device=torch.device("cpu"))
    tokens_BT = torch.arange(12).view(1, 12) % 8
    changed_BT = tokens_BT.clone()
    changed_BT[0, 6] = 7
    differs = (stem.embed(tokens_BT) != stem.embed(changed_BT)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [6, 7, 8, 9]


def test_attention_learns_an_easy_recall(architecture):
    assert quality.recall(architecture("*-"), EASY, seed=0, **ON_CPU) > 0.9


def test_a_model_that_mixes_no_tokens_stays_at_chance(architecture):
    """It sees through the stem what stood just before, which tells nothing of the answer but
    which values there are: one of the two at best."""
    accuracy = quality.recall(architecture("-"), EASY, seed=0, **ON_CPU)
    assert accuracy < 1 / EASY.pairs + 0.05


def test_the_deadline_ends_a_task(architecture, corpus):
    passed = {"device": torch.device("cpu"), "deadline": time.monotonic() - 1}
    with pytest.raises(OutOfTime):
        quality.bits_per_byte(architecture("*-"), SHORT, corpus, seed=0, **passed)
    with pytest.raises(OutOfTime):
        quality.recall(architecture("*-"), EASY, seed=0, **passed)


def test_one_seed_gives_every_number_but_no_interval(architecture, corpus):
    plan = Plan(text=SHORT, recall=EASY.model_copy(update={"steps": 3}))
    found = quality.quality(architecture("(G-G-*-)x2"), plan, corpus, seed=0, **ON_CPU)
    by_name = {m.name: m for m in found}
    assert by_name.keys() == {
        "bits_per_byte", "recall", "recall_cache_bytes", "proxy_step_ms", "proxy_parameters"
    }  # fmt: skip
    assert by_name.keys() <= METRICS.keys()
    for m in found:
        counted = m.provenance == "counted"
        assert (m.low, m.high) == ((m.value, m.value) if counted else (None, None))
        assert (m.device is None) == counted


def test_more_seeds_give_their_mean_in_a_student_interval(architecture, corpus):
    plan = Plan(text=SHORT, recall=EASY.model_copy(update={"steps": 3}), seeds=3)
    made = architecture("*-")
    found = quality.quality(made, plan, corpus, seed=5, **ON_CPU)
    bits = next(m for m in found if m.name == "bits_per_byte")
    each = [
        quality.bits_per_byte(made, SHORT, corpus, seed=s, **ON_CPU).bits_per_byte
        for s in (5, 6, 7)
    ]
    assert bits.value == mean(each)
    reach = 2.920 * np.std(each, ddof=1) / math.sqrt(3)
    assert bits.low == pytest.approx(bits.value - reach)
    assert bits.high == pytest.approx(bits.value + reach)


@pytest.mark.parametrize(("freedom", "t"), [(1, 6.314), (9, 1.833), (10, 1.812), (30, 1.697)])
def test_the_quantile_of_students_t(freedom: int, t: float):
    assert quality.student_95(freedom) == pytest.approx(t, abs=1e-3)
