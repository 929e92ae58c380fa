"""Text generation: greedy or sampled, or speculative with the model's MTP modules."""

# B batch, T tokens of the prompt, N new tokens, V vocabulary, D model width

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .body import Pass, Unbuilt
from .model import HybridLM


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings. A temperature of 0 is greedy decoding.

    `top_k` keeps the most probable tokens, `top_p` the smallest set with that total probability
    (nucleus sampling, arXiv 1904.09751). Raises ValueError for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (
            self.temperature >= 0
            and 0 < self.top_p <= 1
            and (self.top_k is None or self.top_k >= 1)
        ):
            raise ValueError(
                "sampling requires temperature >= 0, top_k >= 1 and 0 < top_p <= 1, got "
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}"
            )

    def draw(self, logits_BV: Tensor, generator: torch.Generator | None) -> Tensor:
        """tokens_B drawn from logits_BV."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        return torch.multinomial(self.probabilities(logits_BV), 1, generator=generator).squeeze(1)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """probability_BV that tokens are drawn with."""
        logits_BV = logits_BV.float() / self.temperature
        if self.top_k is not None:
            least_B1 = logits_BV.topk(min(self.top_k, logits_BV.shape[-1]), -1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        probability_BV = logits_BV.softmax(-1)
        if self.top_p < 1:
            sorted_BV, order_BV = probability_BV.sort(-1, descending=True)
            earlier_BV = sorted_BV.cumsum(-1) - sorted_BV
            sorted_BV = sorted_BV.masked_fill(earlier_BV >= self.top_p, 0.0)
            probability_BV = torch.zeros_like(probability_BV).scatter(-1, order_BV, sorted_BV)
            probability_BV = probability_BV / probability_BV.sum(-1, keepdim=True)
        return probability_BV


GREEDY = Sampling()


@torch.no_grad()
def generate(
    model: HybridLM,
    prompt_BT: Tensor,
    new_tokens: int,
    *,
    lengths_B: Tensor | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    end: int | None = None,
) -> Tensor:
    """tokens_BN, N = `new_tokens`, that continue each prompt.

    `lengths_B` are the lengths of prompts shorter than T. A row that has produced the token `end`
    repeats it; once all rows have, generation stops with fewer than N tokens.
    """
    generator = torch.Generator(prompt_BT.device).manual_seed(seed)
    logits_BV, caches = model.prefill(prompt_BT, lengths_B)
    tokens = [sampling.draw(logits_BV, generator)]
    while len(tokens) < new_tokens:
        if end is not None and bool((tokens[-1] == end).all()):
            break
        logits_BV, caches = model.step(tokens[-1], caches)
        drawn_B = sampling.draw(logits_BV, generator)
        if end is not None:
            drawn_B = torch.where(tokens[-1] == end, end, drawn_B)
        tokens.append(drawn_B)
    return torch.stack(tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Result of speculative decoding: new tokens, and accepted drafts per pass of the model."""

    tokens_N: Tensor
    accepted: tuple[int, ...]

    @property
    def tokens_per_pass(self) -> float:
        """Mean number of new tokens per pass of the model."""
        return 1 + sum(self.accepted) / max(1, len(self.accepted))


@torch.no_grad()
def speculate(model: HybridLM, prompt_T: Tensor, new_tokens: int) -> Drafted:
    """Greedy continuation of one prompt by speculative decoding (arXiv 2211.17192).

    The MTP modules draft, the model verifies: each of its passes reads the last token and the
    drafts, accepts those before the first that differs from its own choice, and adds its own token.
    The text equals that of `generate`. Raises Unbuilt without MTP modules.
    """
    if not len(model.mtp):
        raise Unbuilt("speculative decoding needs MTP modules, this architecture has none")
    text = _DraftedText(model, prompt_T)
    accepted = []
    while len(text.tokens) < len(prompt_T) + new_tokens:
        accepted.append(text.advance())
    tokens = text.tokens[len(prompt_T) : len(prompt_T) + new_tokens]
    return Drafted(tokens_N=torch.tensor(tokens, device=prompt_T.device), accepted=tuple(accepted))


class _DraftedText:
    """The text so far, whose last token has not been read by the model yet.

    At a position, MTP module k = 1, 2, ... reads the hidden state of module k - 1 (0 is the model)
    and the token k places on. `hidden[k]` and its cache hold the positions of accepted tokens.
    """

    def __init__(self, model: HybridLM, prompt_T: Tensor) -> None:
        self.model, self.device = model, prompt_T.device
        self.caches = model.new_caches(1)
        self.module_caches = [module.new_cache(1) for module in model.mtp]
        self.tokens: list[int] = prompt_T.tolist()
        hidden_1TD = model.read(prompt_T[None], self.caches)
        self.hidden = [hidden_1TD, *(hidden_1TD[:, :0] for _ in model.mtp)]
        self.tokens += self._most_likely(hidden_1TD[:, -1:])

    def advance(self) -> int:
        """Run one pass of the model and return the number of accepted drafts."""
        drafts = self._drafts()
        saved = deepcopy(self.caches)
        read_1T = self._row([self.tokens[-1], *drafts])
        hidden_1TD = self.model.read(read_1T, self.caches)
        chosen = self._most_likely(hidden_1TD)
        accepted = next((i for i, d in enumerate(drafts) if d != chosen[i]), len(drafts))
        if accepted < len(drafts):  # undo the rejected tokens
            self.caches = saved
            hidden_1TD = self.model.read(read_1T[:, : accepted + 1], self.caches)
        self.tokens += chosen[: accepted + 1]
        self.hidden[0] = torch.cat([self.hidden[0], hidden_1TD], 1)
        return accepted

    def _drafts(self) -> list[int]:
        """One drafted token per module, each from those before it."""
        hidden, drafts = self.hidden[0], []
        length = hidden.shape[1]
        for k, cache in enumerate(self.module_caches, 1):
            start = self.hidden[k].shape[1]
            stop = max(start, length - k + 1)  # later positions read a draft
            known = self._read(k, hidden, start, stop, drafts, cache)
            self.hidden[k] = torch.cat([self.hidden[k], known], 1)
            rest = self._read(k, hidden, stop, length, drafts, deepcopy(cache))
            hidden = torch.cat([self.hidden[k], rest], 1)
            drafts += self._most_likely(hidden[:, -1:])
        return drafts

    def _read(
        self, k: int, hidden: Tensor, start: int, stop: int, drafts: list[int], cache: list[Any]
    ) -> Tensor:
        """hidden_1TD of module k at positions `start` to `stop`, appended to its cache."""
        if start == stop:
            return hidden[:, :0]
        next_1T = self._row((self.tokens + drafts)[start + k : stop + k])
        positions_1T = torch.arange(start, stop, device=self.device)[None]
        run = Pass(positions_BT=positions_1T, tokens_BT=next_1T, whole_rows=start == 0)
        embedded = self.model.embed(next_1T)
        return self.model.mtp[k - 1](hidden[:, start:stop], embedded, run, cache)

    def _row(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], device=self.device)

    def _most_likely(self, hidden_1TD: Tensor) -> list[int]:
        return self.model.logits(hidden_1TD)[0].argmax(-1).tolist()
