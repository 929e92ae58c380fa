"""Text from a model: greedy or sampled, one token at a time or drafted by its MTP modules."""

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
    """How a token is drawn. A temperature of 0 takes the most likely one.

    `top_k` keeps the likeliest tokens, `top_p` the fewest that make up that probability
    (arXiv 1904.09751).
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
                "sampling wants temperature >= 0, top_k >= 1, 0 < top_p <= 1, got "
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}"
            )

    def draw(self, logits_BV: Tensor, generator: torch.Generator | None) -> Tensor:
        """tokens_B."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        return torch.multinomial(self.shares(logits_BV), 1, generator=generator).squeeze(1)

    def shares(self, logits_BV: Tensor) -> Tensor:
        """The probability of each token."""
        logits_BV = logits_BV.float() / self.temperature
        if self.top_k is not None:
            least_B1 = logits_BV.topk(min(self.top_k, logits_BV.shape[-1]), -1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        share_BV = logits_BV.softmax(-1)
        if self.top_p < 1:
            sorted_BV, order_BV = share_BV.sort(-1, descending=True)
            before_BV = sorted_BV.cumsum(-1) - sorted_BV
            sorted_BV = sorted_BV.masked_fill(before_BV >= self.top_p, 0.0)
            share_BV = torch.zeros_like(share_BV).scatter(-1, order_BV, sorted_BV)
            share_BV = share_BV / share_BV.sum(-1, keepdim=True)
        return share_BV


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
    """tokens_BN that follow each prompt, of `lengths_B` tokens where they are not all of T.

    A row that has come to the `end` token repeats it; when all have, fewer than N are given.
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
    """The new tokens, and how many drafted ones each pass of the model accepted."""

    tokens_N: Tensor
    accepted: tuple[int, ...]

    @property
    def tokens_per_pass(self) -> float:
        return 1 + sum(self.accepted) / max(1, len(self.accepted))


@torch.no_grad()
def speculate(model: HybridLM, prompt_T: Tensor, new_tokens: int) -> Drafted:
    """The greedy continuation of one prompt, drafted by the MTP modules and verified by the model.

    Each pass of the model reads the last token and the drafts, keeps the drafts up to the first that
    it would not have taken itself, and adds its own token: the text is the one of `generate`.
    """
    if not len(model.mtp):
        raise Unbuilt("speculative decoding needs MTP modules, this architecture has none")
    text = _Draft(model, prompt_T)
    accepted = []
    while len(text.tokens) < len(prompt_T) + new_tokens:
        accepted.append(text.advance())
    tokens = text.tokens[len(prompt_T) : len(prompt_T) + new_tokens]
    return Drafted(tokens_N=torch.tensor(tokens, device=prompt_T.device), accepted=tuple(accepted))


class _Draft:
    """A text that grows: its last token is known but not read yet.

    Module k (from 1) reads, at a position, the hidden state that module k - 1 (0 is the model) has
    there and the token k places on. What it made of sure tokens is kept, in `sure` and its cache.
    """

    def __init__(self, model: HybridLM, prompt_T: Tensor) -> None:
        self.model, self.device = model, prompt_T.device
        self.caches = model.new_caches(1)
        self.of_module = [module.new_cache(1) for module in model.mtp]
        self.tokens: list[int] = prompt_T.tolist()
        hidden_1TD = model.read(prompt_T[None], self.caches)
        self.sure = [hidden_1TD, *(hidden_1TD[:, :0] for _ in model.mtp)]
        self.tokens += self._likeliest(hidden_1TD[:, -1:])

    def advance(self) -> int:
        """One pass of the model: how many drafts were right."""
        drafts = self._drafts()
        before = deepcopy(self.caches)
        read_1T = self._row([self.tokens[-1], *drafts])
        hidden_1TD = self.model.read(read_1T, self.caches)
        wanted = self._likeliest(hidden_1TD)
        right = next((i for i, d in enumerate(drafts) if d != wanted[i]), len(drafts))
        if right < len(drafts):  # take back what was read in vain
            self.caches = before
            hidden_1TD = self.model.read(read_1T[:, : right + 1], self.caches)
        self.tokens += wanted[: right + 1]
        self.sure[0] = torch.cat([self.sure[0], hidden_1TD], 1)
        return right

    def _drafts(self) -> list[int]:
        """One token from each module, each drawn on those before it."""
        hidden, drafts = self.sure[0], []
        length = hidden.shape[1]
        for k, cache in enumerate(self.of_module, 1):
            start = self.sure[k].shape[1]
            stop = max(start, length - k + 1)  # from here on a draft is read
            known = self._read(k, hidden, start, stop, drafts, cache)
            self.sure[k] = torch.cat([self.sure[k], known], 1)
            rest = self._read(k, hidden, stop, length, drafts, deepcopy(cache))
            hidden = torch.cat([self.sure[k], rest], 1)
            drafts += self._likeliest(hidden[:, -1:])
        return drafts

    def _read(
        self, k: int, hidden: Tensor, start: int, stop: int, drafts: list[int], cache: list[Any]
    ) -> Tensor:
        """What module k makes of the positions from `start` to `stop`; its cache keeps them."""
        if start == stop:
            return hidden[:, :0]
        next_1T = self._row((self.tokens + drafts)[start + k : stop + k])
        positions_1T = torch.arange(start, stop, device=self.device)[None]
        run = Pass(positions_BT=positions_1T, tokens_BT=next_1T, whole_rows=start == 0)
        embedded = self.model.embed(next_1T)
        return self.model.mtp[k - 1](hidden[:, start:stop], embedded, run, cache)

    def _row(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], device=self.device)

    def _likeliest(self, hidden_1TD: Tensor) -> list[int]:
        return self.model.logits(hidden_1TD)[0].argmax(-1).tolist()
