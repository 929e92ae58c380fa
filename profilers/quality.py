"""What a candidate is worth: its twin trained for seconds, on text and on recall."""

# B batch, T tokens, P pairs, Q queries, D model width, V vocabulary, W held-out windows

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..builders.model import build
from ..search_space.accounting import cache_bytes_at, parameters
from ..search_space.architecture import Architecture
from ..search_space.plan import Plan, RecallTask, TextTask
from ..search_space.proxy import proxy_architecture
from .corpus import Corpus
from .latency import local_device_name
from .report import Measurement
from .training import train

HELD_OUT_WINDOWS = 128
HELD_OUT_SEQUENCES = 512
HELD_OUT_BATCH = 32  # without gradients: larger than in training, fewer calls
TRAINING, HELD_OUT = 0, 1  # the streams of random numbers that a seed stands for
STEM_WIDTH = 4
# Symbols enter small, as an embedding's rows do, or they drown what fresh blocks write: in the
# default task four layers of attention reach 0.15 to 0.4 with codes of size 1, 0.9 to 1 with these.
CODE_SCALE = 0.1

# Student's t at 95% for 1, 2, ... degrees of freedom; the expansion in 1/n serves beyond
# (Abramowitz and Stegun 26.7.5).
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
T_95_EXPANSION = (1.6449, 1.5238, 1.4203)


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """`standard_error` is that of the held-out windows; they are the same for every candidate."""

    bits_per_byte: float
    standard_error: float
    seconds_per_step: float
    parameters: int


def quality(
    architecture: Architecture,
    plan: Plan,
    corpus: Corpus,
    *,
    seed: int,
    device: torch.device,
    deadline: float,
) -> tuple[Measurement, ...]:
    """Both tasks on the twins of `architecture`, at `plan.seeds` seeds from `seed` on.

    With two seeds or more, an interval is the 90% Student-t interval of the mean. `deadline` is a
    moment of `time.monotonic`. Raises InputError when the corpus is too small, ValueError when
    the proxy cannot hold the architecture, NotFinite, OutOfTime.
    """
    reader, recaller = (
        proxy_architecture(
            architecture, plan.proxy, context_fraction=plan.context_fraction(task.context)
        )
        for task in (plan.text, plan.recall)
    )
    seeds = range(seed, seed + plan.seeds)
    texts = [
        bits_per_byte(reader, plan.text, corpus, seed=s, device=device, deadline=deadline)
        for s in seeds
    ]
    recalls = [
        recall(recaller, plan.recall, seed=s, device=device, deadline=deadline) for s in seeds
    ]
    return (
        _measured("bits_per_byte", [text.bits_per_byte for text in texts], device),
        _measured("recall", recalls, device),
        Measurement.counted("recall_cache_bytes", cache_bytes_at(recaller, plan.recall.context)),
        _measured("proxy_step_ms", [1e3 * text.seconds_per_step for text in texts], device),
        Measurement.counted("proxy_parameters", parameters(reader).total),
    )


def bits_per_byte(
    architecture: Architecture,
    task: TextTask,
    corpus: Corpus,
    *,
    seed: int,
    device: torch.device,
    deadline: float,
) -> TextResult:
    """Train on windows of the corpus, then sum nats / (ln 2 x bytes) over held-out windows.

    `architecture` reads bytes: its vocabulary is at least 256. The windows drawn depend on seed,
    task and corpus alone, so that candidates are paired. Raises InputError, NotFinite, OutOfTime.
    """
    corpus.require(task.context)
    model = build(architecture, device=device, seed=seed)

    def nats_of(windows_BT: Tensor) -> Tensor:
        """nats_BT of each byte but the first, which has nothing before it."""
        windows_BT = windows_BT.to(device)
        logits_BTV = model(windows_BT[:, :-1])
        return F.cross_entropy(logits_BTV.mT.float(), windows_BT[:, 1:], reduction="none")

    trained = train(
        model,
        training_windows(corpus, task, seed),
        steps=task.steps,
        learning_rate=task.learning_rate,
        loss_of=lambda windows_BT: nats_of(windows_BT).mean(),
        deadline=deadline,
    )
    model.eval()
    with torch.inference_mode():
        batches = held_out_windows(corpus, task.context).split(HELD_OUT_BATCH)
        nats_W = torch.cat([nats_of(windows_BT).mean(1) for windows_BT in batches])
    bits_W = nats_W.double().cpu() / math.log(2)
    return TextResult(
        bits_per_byte=bits_W.mean().item(),
        standard_error=(bits_W.var(correction=0) / len(bits_W)).sqrt().item(),
        seconds_per_step=trained.seconds_per_step,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def training_windows(corpus: Corpus, task: TextTask, seed: int) -> Iterator[Tensor]:
    """Batches of windows at random places, each `context` bytes and the one after them."""
    rng = np.random.default_rng([seed, TRAINING])
    while True:
        starts_B = rng.integers(len(corpus.train) - task.context, size=task.batch)
        yield _windows(corpus.train, starts_B, task.context)


def held_out_windows(corpus: Corpus, context: int) -> Tensor:
    """The windows every candidate is tested on, windows_WT: evenly spread, none overlapping."""
    length = len(corpus.held_out)
    num_windows = min(HELD_OUT_WINDOWS, length // (context + 1))
    starts_W = np.arange(num_windows) * length // num_windows
    return _windows(corpus.held_out, starts_W, context)


def _windows(text: np.ndarray, starts_B: np.ndarray, context: int) -> Tensor:
    return torch.from_numpy(text[starts_B[:, None] + np.arange(context + 1)].astype(np.int64))


class Stem(nn.Module):
    """What stands around the stack in the recall task, the same for every candidate.

    In front, a causal depthwise convolution beside the residual, so that a value is seen together
    with its key: without it attention has to find induction over two layers first, which takes
    longer than the default task lasts (accuracy 0.32), and the task measures patience. Symbols are fixed random codes, and answers are read off them: whatever is
    learned is learned by the stack.
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
        x_BDT = CODE_SCALE * self.codes_VD[tokens_BT].mT
        seen_BDT = F.pad(x_BDT, (STEM_WIDTH - 1, 0))
        return (x_BDT + F.conv1d(seen_BDT, self.conv_weight, groups=x_BDT.shape[1])).mT

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD @ self.codes_VD.T * self.codes_VD.shape[1] ** -0.5


def recall(
    architecture: Architecture,
    task: RecallTask,
    *,
    seed: int,
    device: torch.device,
    deadline: float,
) -> float:
    """The share of right answers in fresh sequences of multi-query associative recall.

    The task is that of Zoology (arXiv 2312.04927) with the stem above; the loss is that of the
    answers alone. The architecture's own embedding and head are not used. Guessing among all
    values gives 2 / vocabulary; to know which values occur, but not whose they are, 1 / pairs.
    Raises NotFinite, OutOfTime.
    """
    model = build(architecture, device=device, seed=seed)
    stem = Stem(task.vocabulary, architecture.d_model, seed=seed, device=device)
    model.add_module("stem", stem)

    def logits_of(tokens_BT: Tensor) -> Tensor:
        """logits_BVQ at the queries."""
        tokens_BT = tokens_BT.to(device)
        hidden_BTD = model.hidden(stem.embed(tokens_BT), tokens_BT)
        return stem.logits(hidden_BTD[:, 2 * task.pairs :]).mT

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens_BT, answers_BQ = batch
        return F.cross_entropy(logits_of(tokens_BT).float(), answers_BQ.to(device))

    rng = np.random.default_rng([seed, TRAINING])
    train(
        model,
        (associations(task, task.batch, rng) for _ in range(task.steps)),
        steps=task.steps,
        learning_rate=task.learning_rate,
        loss_of=loss_of,
        deadline=deadline,
    )
    model.eval()
    tokens_BT, answers_BQ = associations(
        task, HELD_OUT_SEQUENCES, np.random.default_rng([seed, HELD_OUT])
    )
    with torch.inference_mode():
        given_BQ = torch.cat(
            [logits_of(part).argmax(1) for part in tokens_BT.split(HELD_OUT_BATCH)]
        )
    return (given_BQ.cpu() == answers_BQ).double().mean().item()


def associations(task: RecallTask, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(tokens_BT, answers_BQ): P pairs of key and value, then Q = T - 2P queries.

    Keys are the lower half of the vocabulary, all different in a sequence; values are drawn from
    the upper half. Every key is asked for, equally often up to one, in random order; the answer is
    due at the query and never shown.
    """
    P, Q, half = task.pairs, task.context - 2 * task.pairs, task.vocabulary // 2
    keys_BP = rng.permuted(np.tile(np.arange(half), (batch, 1)), axis=1)[:, :P]
    values_BP = rng.integers(half, task.vocabulary, size=(batch, P))
    asked_BQ = rng.permuted(np.tile(np.arange(Q) % P, (batch, 1)), axis=1)
    pairs_BT = np.stack([keys_BP, values_BP], axis=2).reshape(batch, 2 * P)
    tokens_BT = np.concatenate([pairs_BT, np.take_along_axis(keys_BP, asked_BQ, axis=1)], axis=1)
    answers_BQ = np.take_along_axis(values_BP, asked_BQ, axis=1)
    return torch.from_numpy(tokens_BT), torch.from_numpy(answers_BQ)


def student_95(freedom: int) -> float:
    """The 95th percentile of Student's t, within 0.001."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    return sum(term / freedom**power for power, term in enumerate(T_95_EXPANSION))


def _measured(name: str, values: list[float], device: torch.device) -> Measurement:
    low = high = None
    if len(values) > 1:
        reach = student_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        low, high = mean(values) - reach, mean(values) + reach
    return Measurement.measured(
        name, mean(values), device=local_device_name(device), low=low, high=high, rung=0
    )
