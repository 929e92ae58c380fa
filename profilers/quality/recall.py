"""Multi-query associative recall (MQAR): the fraction of queries answered right."""

# B batch, T tokens, P pairs, Q queries, D model width, V vocabulary

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...builders.model import HybridLM, build
from ...search_space.accounting import cache_bytes_at
from ...search_space.architecture import Architecture
from ...search_space.plan import RecallSettings
from ..training import Training
from .task import Run, Task

HELD_OUT_SEQUENCES = 512
HELD_OUT_BATCH = 32  # without gradients: larger than in training, fewer calls
TRAINING_STREAM, HELD_OUT_STREAM = 0, 1  # of the random numbers of a seed
STEM_WIDTH = 4
# Scale of the symbols' embeddings, small as those of a language model: at scale 1 they dominate
# what untrained blocks add. Four layers of attention reach 0.9 to 1 on the default task with this
# scale, 0.15 to 0.4 with scale 1.
CODE_SCALE = 0.1


class RecallTask(Task[RecallSettings]):
    """The task of Zoology (arXiv 2312.04927), with a stem in front of the stack.

    The loss is that of the answers alone. The architecture's own embedding and head are not used.
    Guessing among all values gives 2 / vocabulary; guessing among the values of the sequence
    gives 1 / pairs.
    """

    metrics = ("recall", "recall_cache_bytes")

    def count(self, proxy: Architecture) -> dict[str, float]:
        return {"recall_cache_bytes": cache_bytes_at(proxy, self.settings.context)}

    def start(
        self, proxy: Architecture, *, seed: int, device: torch.device, deadline: float
    ) -> "RecallRun":
        model = build(proxy, device=device, seed=seed)
        return RecallRun(model, self.settings, seed=seed, deadline=deadline)


class RecallRun(Run):
    """A run on random sequences, measured on `HELD_OUT_SEQUENCES` of the held-out stream."""

    def __init__(
        self, model: HybridLM, settings: RecallSettings, *, seed: int, deadline: float
    ) -> None:
        self.model, self.settings, self.seed = model, settings, seed
        self.device = model.embedding.weight.device
        d_model = model.architecture.d_model
        self.stem = Stem(settings.vocabulary, d_model, seed=seed, device=self.device)
        model.add_module("stem", self.stem)
        self.training = Training(
            model,
            training_sequences(settings, seed),
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            loss_of=self._loss,
            deadline=deadline,
        )

    def advance(self, fraction: float) -> dict[str, float]:
        self.training.advance(fraction)
        return {"recall": self.accuracy()}

    def accuracy(self) -> float:
        """The fraction of queries answered right in the held-out sequences."""
        rng = np.random.default_rng([self.seed, HELD_OUT_STREAM])
        tokens_BT, answers_BQ = associations(self.settings, HELD_OUT_SEQUENCES, rng)
        self.model.eval()
        with torch.inference_mode():
            batches = tokens_BT.split(HELD_OUT_BATCH)
            given_BQ = torch.cat([self._logits(batch).argmax(1) for batch in batches])
        return (given_BQ.cpu() == answers_BQ).double().mean().item()

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens_BT, answers_BQ = batch
        return F.cross_entropy(self._logits(tokens_BT).float(), answers_BQ.to(self.device))

    def _logits(self, tokens_BT: Tensor) -> Tensor:
        """logits_BVQ at the queries."""
        tokens_BT = tokens_BT.to(self.device)
        hidden_BTD = self.model.hidden(self.stem.embed(tokens_BT), tokens_BT)
        return self.stem.logits(hidden_BTD[:, 2 * self.settings.pairs :]).mT


class Stem(nn.Module):
    """Input and output layers of the recall task, the same for every candidate.

    Symbols are fixed random codes, and the answers' logits are products with the same codes, so
    whatever is learned is learned by the stack. A causal depthwise convolution is added to the
    codes, so that a value is seen together with its key: without it, attention must first form
    induction heads over two layers, which takes more steps than the default task has (accuracy
    0.32).
    """

    codes_VD: Tensor

    def __init__(self, vocabulary: int, d_model: int, *, seed: int, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        codes_VD = torch.randn(vocabulary, d_model, generator=generator)
        bound = STEM_WIDTH**-0.5
        weight = torch.empty(d_model, 1, STEM_WIDTH).uniform_(-bound, bound, generator=generator)
        self.register_buffer("codes_VD", codes_VD.to(device))
        self.conv_weight = nn.Parameter(weight.to(device))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """x_BTD: the codes of the tokens plus their causal convolution."""
        x_BDT = CODE_SCALE * self.codes_VD[tokens_BT].mT
        padded_BDT = F.pad(x_BDT, (STEM_WIDTH - 1, 0))
        return (x_BDT + F.conv1d(padded_BDT, self.conv_weight, groups=x_BDT.shape[1])).mT

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """logits_BTV: scaled products with the codes."""
        return hidden_BTD @ self.codes_VD.T * self.codes_VD.shape[1] ** -0.5


def training_sequences(settings: RecallSettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (tokens_BT, answers_BQ)."""
    rng = np.random.default_rng([seed, TRAINING_STREAM])
    while True:
        yield associations(settings, settings.batch, rng)


def associations(
    settings: RecallSettings, batch: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(tokens_BT, answers_BQ): P pairs of key and value, then Q = T - 2P queries.

    Keys are from the lower half of the vocabulary, all different in a sequence; values are from the
    upper half. Queries are the keys in random order, each equally often up to one. The answer is
    due at the query and never shown.
    """
    P, Q, half = settings.pairs, settings.context - 2 * settings.pairs, settings.vocabulary // 2
    keys_BP = rng.permuted(np.tile(np.arange(half), (batch, 1)), axis=1)[:, :P]
    values_BP = rng.integers(half, settings.vocabulary, size=(batch, P))
    asked_BQ = rng.permuted(np.tile(np.arange(Q) % P, (batch, 1)), axis=1)
    pairs_BT = np.stack([keys_BP, values_BP], axis=2).reshape(batch, 2 * P)
    tokens_BT = np.concatenate([pairs_BT, np.take_along_axis(keys_BP, asked_BQ, axis=1)], axis=1)
    answers_BQ = np.take_along_axis(values_BP, asked_BQ, axis=1)
    return torch.from_numpy(tokens_BT), torch.from_numpy(answers_BQ)


TASK = RecallTask
