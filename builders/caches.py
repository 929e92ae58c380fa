"""What bodies keep of the tokens they have read, each row of a batch at a length of its own."""

# B batch, T tokens, C tokens that there is room for, H heads, D head width

from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor

from ..kernels.attention.cache import PagedCache
from ..search_space.operators import NumberFormat
from .body import Pass
from .precision import decode, encode

PAGE = 64  # tokens that lie together
GROWTH = 4  # pages a cache grows by: copying it then costs 1/256 of the reading in between


class Memory:
    """Base of all caches: what a pass changed can be taken back."""

    def copy(self) -> Self:
        """The same content in tensors of its own."""
        return deepcopy(self)

    def tensors(self) -> list[Tensor]:
        """What is held, without the room that is not used yet."""
        raise NotImplementedError

    def fill_random(self, tokens: int) -> None:
        """Hold random content as if so many tokens had been read; some have been, to say of what
        shape. A memory of constant size stays as it is."""


class TokenCache(Memory):
    """Named x_BTHD of the tokens of each row, and their positions.

    With a window only the first `first` tokens and the last `window` others are kept. In an 8-bit
    format it holds values and one fp32 scale a token and head. The row's n-th token has its place
    at n, past the first ones in turns of `window` places.
    """

    def __init__(self, batch: int, *, window: int | None, kv: NumberFormat, first: int = 0) -> None:
        self.room = None if window is None else first + window
        self.first = first
        self.kv: NumberFormat = kv
        self.lengths = [0] * batch  # tokens read so far
        self.parts: dict[str, tuple[Tensor, ...]] = {}
        self.positions_BC = torch.empty(batch, 0, dtype=torch.int64)
        self.dtype = torch.float32

    @property
    def empty(self) -> bool:
        return not any(self.lengths)

    @property
    def uniform(self) -> bool:
        """Whether all rows hold the same number of tokens."""
        return min(self.lengths) == max(self.lengths)

    def append(self, run: Pass, **named: Tensor) -> None:
        """Keep the valid tokens of a pass."""
        T = run.positions_BT.shape[1]
        counts = [T] * len(self.lengths)
        if run.valid_BT is not None:
            counts = run.valid_BT.sum(1).tolist()
        self._make_room(max(n + c for n, c in zip(self.lengths, counts, strict=True)), named, run)
        place = self._places(counts, T, run.positions_BT.device)
        self.positions_BC[place[:2]] = run.positions_BT[place[2]]
        for name, x in named.items():
            for buffer, part in zip(self.parts[name], self._encoded(x), strict=True):
                buffer[place[:2]] = part[place[2]]
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]

    def _places(self, counts: list[int], T: int, device: torch.device) -> tuple[Any, Any, Any]:
        """(row, place, source): where each kept token of the pass goes, as indices."""
        start = self._place(self.lengths[0])
        if self.uniform and set(counts) == {T} and start + T <= (self.room or start + T):
            everything = slice(None)
            return everything, slice(start, start + T), everything
        row, place, source = [], [], []
        for index, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            last = length + count - (self.room - self.first) if self.room else 0
            kept = [t for t in range(count) if length + t < self.first or length + t >= last]
            row += [index] * len(kept)
            source += kept
            place += [self._place(length + t) for t in kept]
        row_N, place_N, source_N = (
            torch.tensor(x, device=device, dtype=torch.int64) for x in (row, place, source)
        )
        return row_N, place_N, (row_N, source_N)

    def _place(self, n: int) -> int:
        if self.room is None or n < self.first:
            return n
        return self.first + (n - self.first) % (self.room - self.first)

    def read(self, name: str) -> Tensor:
        """x_BCHD of what is held, in the order of the places."""
        held = tuple(buffer[:, : self._used] for buffer in self.parts[name])
        return held[0] if self.kv == "bf16" else decode(*held).to(self.dtype)

    def positions(self) -> Tensor:
        """positions_BC of what `read` gives, -1 where a row holds nothing."""
        return self.positions_BC[:, : self._used]

    def pages(
        self, key: str, value: str | None, lengths_B: Tensor, *, value_dim: int | None = None
    ) -> PagedCache:
        """The first `lengths_B` places of each row, as the decoding kernel reads them.

        Without a `value` the first `value_dim` numbers of the key are the value.
        """
        keys, k_scale = self._in_pages(key)
        values, v_scale = (None, None) if value is None else self._in_pages(value)
        if values is not None:
            value_dim = values.shape[-1]
        count = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        return PagedCache(
            k_pages=keys,
            v_pages=values,
            v_dim=keys.shape[-1] if value_dim is None else value_dim,
            page_table=count.view(len(self.lengths), -1),
            lengths_B=lengths_B.int(),
            k_scale=k_scale,
            v_scale=v_scale,
        )

    def _in_pages(self, name: str) -> tuple[Tensor, Tensor | None]:
        pages = [buffer.unflatten(1, (-1, PAGE)).flatten(0, 1) for buffer in self.parts[name]]
        return pages[0], pages[1].squeeze(-1) if len(pages) == 2 else None

    @property
    def _used(self) -> int:
        return min(max(self.lengths), self.room or max(self.lengths))

    def _encoded(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) if self.kv == "bf16" else encode(x, (-1,), self.kv)

    def _make_room(self, tokens: int, named: dict[str, Tensor], run: Pass) -> None:
        wanted = min(tokens, self.room or tokens)
        if not self.parts:
            self.positions_BC = self.positions_BC.to(run.positions_BT.device)
            self.dtype = next(iter(named.values())).dtype
            empty = {name: self._encoded(x[:, :1]) for name, x in named.items()}
            self.parts = {name: tuple(p[:, :0] for p in parts) for name, parts in empty.items()}
        if self.positions_BC.shape[1] < wanted:
            room = _rounded(wanted, GROWTH * PAGE)
            room = min(room, _rounded(self.room or room, PAGE))
            self.positions_BC = grown(self.positions_BC, room, -1)
            self.parts = {
                name: tuple(grown(buffer, room, 0) for buffer in parts)
                for name, parts in self.parts.items()
            }

    def tensors(self) -> list[Tensor]:
        return [buffer[:, : self._used] for parts in self.parts.values() for buffer in parts]

    def fill_random(self, tokens: int) -> None:
        self.lengths = [tokens] * len(self.lengths)
        room = _rounded(self._used, PAGE)
        device = self.positions_BC.device
        place_C = torch.arange(room, device=device)
        if self.room is not None and tokens > self.room:  # a window is as new as its text
            late_C = place_C >= self.first
            place_C = torch.where(late_C, place_C + tokens - self.room, place_C)
        self.positions_BC = place_C.expand(len(self.lengths), -1).clone()
        for name, parts in self.parts.items():
            like = parts[0]
            drawn = torch.randn(like.shape[0], room, *like.shape[2:], device=device)
            self.parts[name] = self._encoded(drawn.to(self.dtype))


def _rounded(tokens: int, grain: int) -> int:
    return -(-tokens // grain) * grain


def grown(buffer: Tensor, room: int, fill: int) -> Tensor:
    """The same content with room for more along the second dimension."""
    B, T, *rest = buffer.shape
    grown = torch.full((B, room, *rest), fill, dtype=torch.float32, device=buffer.device)
    grown = grown.to(buffer.dtype)
    grown[:, :T] = buffer
    return grown


class StateCache(Memory):
    """Named tensors of constant size, one row a sequence: states, convolution tails, shifts."""

    def __init__(self, **named: Tensor) -> None:
        self.named = named

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.named[name] = value

    def tensors(self) -> list[Tensor]:
        return list(self.named.values())


def last_inputs(x_BTN: Tensor, tail_BWN: Tensor, valid_BT: Tensor | None) -> Tensor:
    """tail_BWN after the tokens of a pass: the last W valid inputs of each row."""
    W = tail_BWN.shape[1]
    seen_BSN = torch.cat([tail_BWN, x_BTN], 1)
    if valid_BT is None:
        return seen_BSN[:, seen_BSN.shape[1] - W :].clone()
    start_B1 = valid_BT.sum(1, keepdim=True)
    index_BW = start_B1 + torch.arange(W, device=x_BTN.device)
    return seen_BSN.gather(1, index_BW[..., None].expand(-1, -1, x_BTN.shape[2]))
