"""Language modeling on bytes of text: bits per byte on held-out text."""

# B batch, T tokens, V vocabulary, W held-out windows

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...builders.model import HybridLM, build
from ...search_space.accounting import parameters
from ...search_space.architecture import Architecture
from ...search_space.plan import TextSettings
from ..corpus import Corpus, load_corpus
from ..training import Training
from .task import Run, Task

HELD_OUT_WINDOWS = 128
HELD_OUT_BATCH = 32  # without gradients: larger than in training, fewer calls
TRAINING_STREAM = 0  # of the random numbers of a seed

corpus_at = cache(load_corpus)  # a worker process reads a corpus once


class TextTask(Task[TextSettings]):
    """Next-byte prediction on windows of a corpus.

    The architecture reads bytes: its vocabulary is at least 256. Raises InputError when the corpus
    cannot be read or is too small.
    """

    metrics = ("bits_per_byte", "proxy_step_ms", "proxy_parameters")

    def __init__(self, settings: TextSettings) -> None:
        super().__init__(settings)
        self.corpus = corpus_at(settings.corpus)
        self.corpus.require(settings.context)

    @property
    def facts(self) -> dict[str, str]:
        return {"corpus": self.corpus.name, "corpus_sha256": self.corpus.sha256}

    def count(self, proxy: Architecture) -> dict[str, float]:
        return {"proxy_parameters": parameters(proxy).total}

    def start(
        self, proxy: Architecture, *, seed: int, device: torch.device, deadline: float
    ) -> "TextRun":
        model = build(proxy, device=device, seed=seed)
        return TextRun(model, self.settings, self.corpus, seed=seed, deadline=deadline)


class TextRun(Run):
    """A run on random windows of the training text, measured on fixed held-out windows."""

    def __init__(
        self,
        model: HybridLM,
        settings: TextSettings,
        corpus: Corpus,
        *,
        seed: int,
        deadline: float,
    ) -> None:
        self.model = model
        self.device = model.embedding.weight.device
        self.held_out_WT = held_out_windows(corpus, settings.context)
        self.training = Training(
            model,
            training_windows(corpus, settings, seed),
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            loss_of=lambda windows_BT: self._nats(windows_BT).mean(),
            deadline=deadline,
        )

    def advance(self, fraction: float) -> dict[str, float]:
        self.training.advance(fraction)
        return {
            "bits_per_byte": self.bits_per_byte(),
            "proxy_step_ms": 1e3 * self.training.seconds_per_step,
        }

    def bits_per_byte(self) -> float:
        """Nats / (ln 2 x bytes), summed over the held-out windows."""
        self.model.eval()
        with torch.inference_mode():
            batches = self.held_out_WT.split(HELD_OUT_BATCH)
            nats_W = torch.cat([self._nats(windows_BT).mean(1) for windows_BT in batches])
        return (nats_W.double().cpu() / math.log(2)).mean().item()

    def _nats(self, windows_BT: Tensor) -> Tensor:
        """nats_BT of every byte but the first of a window, which nothing precedes."""
        windows_BT = windows_BT.to(self.device)
        logits_BTV = self.model(windows_BT[:, :-1])
        return F.cross_entropy(logits_BTV.mT.float(), windows_BT[:, 1:], reduction="none")


def training_windows(corpus: Corpus, settings: TextSettings, seed: int) -> Iterator[Tensor]:
    """Endless batches windows_BT at random places: `context` bytes and the one after them."""
    rng = np.random.default_rng([seed, TRAINING_STREAM])
    while True:
        starts_B = rng.integers(len(corpus.train) - settings.context, size=settings.batch)
        yield _windows(corpus.train, starts_B, settings.context)


def held_out_windows(corpus: Corpus, context: int) -> Tensor:
    """The windows_WT that every candidate is measured on: evenly spaced, none overlapping."""
    length = len(corpus.held_out)
    num_windows = min(HELD_OUT_WINDOWS, length // (context + 1))
    starts_W = np.arange(num_windows) * length // num_windows
    return _windows(corpus.held_out, starts_W, context)


def _windows(text: np.ndarray, starts_B: np.ndarray, context: int) -> Tensor:
    return torch.from_numpy(text[starts_B[:, None] + np.arange(context + 1)].astype(np.int64))


TASK = TextTask
