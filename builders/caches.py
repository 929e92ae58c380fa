"""Decoding caches: keys and values by token, recurrent states; each row has its own length."""

# B batch, T tokens, C tokens that there is room for, H heads, D head width

from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor

from ..kernels.attention.cache import PagedCache
from ..search_space.operators import NumberFormat
from .precision import decode, encode

PAGE = 64  # tokens per page
GROWTH = 4  # pages a cache grows by: one token in 256 copies it


class Memory:
    """Base class of all caches."""

    def copy(self) -> Self:
        """A deep copy, for undoing what a pass appends."""
        return deepcopy(self)

    def tensors(self) -> list[Tensor]:
        """The content, without allocated room that is not used yet."""
        raise NotImplementedError

    def fill_random(self, tokens: int) -> None:
        """Replace the content by random values, as if `tokens` tokens per row had been read.

        At least one token must have been read, which fixes the shapes. A cache of constant size
        keeps its content.
        """


class TokenCache(Memory):
    """Tensors x_BTHD by name for the tokens of each row, and their positions.

    With a window only the first `first` tokens and the last `window` others are kept. In an 8-bit
    format each token and head has values and one fp32 scale. Token n of a row lies at index n;
    beyond the first ones a window is a ring buffer of `window` slots.
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
        """Whether no row holds a token."""
        return not any(self.lengths)

    @property
    def uniform(self) -> bool:
        """Whether all rows hold the same number of tokens."""
        return min(self.lengths) == max(self.lengths)

    def append(self, positions_BT: Tensor, valid_BT: Tensor | None, **named: Tensor) -> None:
        """Append the tokens of a pass, those of `valid_BT` if given, each tensor x_BTHD."""
        T = positions_BT.shape[1]
        counts = [T] * len(self.lengths)
        if valid_BT is not None:
            counts = valid_BT.sum(1).tolist()
        needed = max(n + c for n, c in zip(self.lengths, counts, strict=True))
        self._make_room(needed, named, positions_BT.device)
        slot = self._slots(counts, T, positions_BT.device)
        self.positions_BC[slot[:2]] = positions_BT[slot[2]]
        for name, x in named.items():
            for buffer, part in zip(self.parts[name], self._encoded(x), strict=True):
                buffer[slot[:2]] = part[slot[2]]
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]

    def _slots(self, counts: list[int], T: int, device: torch.device) -> tuple[Any, Any, Any]:
        """(row, slot, source): index tensors of the kept tokens, in the cache and in the pass."""
        start = self._slot(self.lengths[0])
        if self.uniform and set(counts) == {T} and start + T <= (self.room or start + T):
            everything = slice(None)
            return everything, slice(start, start + T), everything
        row, slot, source = [], [], []
        for index, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            last = length + count - (self.room - self.first) if self.room else 0
            kept = [t for t in range(count) if length + t < self.first or length + t >= last]
            row += [index] * len(kept)
            source += kept
            slot += [self._slot(length + t) for t in kept]
        row_N, place_N, source_N = (
            torch.tensor(x, device=device, dtype=torch.int64) for x in (row, slot, source)
        )
        return row_N, place_N, (row_N, source_N)

    def _slot(self, n: int) -> int:
        if self.room is None or n < self.first:
            return n
        return self.first + (n - self.first) % (self.room - self.first)

    def read(self, name: str) -> Tensor:
        """x_BCHD of all cached tokens, by index; dequantized."""
        held = tuple(buffer[:, : self._used] for buffer in self.parts[name])
        return held[0] if self.kv == "bf16" else decode(*held).to(self.dtype)

    def positions(self) -> Tensor:
        """positions_BC of what `read` returns, -1 where a row holds no token."""
        return self.positions_BC[:, : self._used]

    def pages(
        self, key: str, value: str | None, lengths_B: Tensor, *, value_dim: int | None = None
    ) -> PagedCache:
        """The first `lengths_B` slots of each row as a paged cache, without a copy.

        With `value` None the first `value_dim` numbers of a key are its value.
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

    def selected_pages(
        self, key: str, value: str, token_BLS: Tensor, lengths_BL: Tensor
    ) -> PagedCache:
        """A copy of selected tokens, B L rows of one head each, as a paged cache.

        `token_BLS` are their indices for L groups of heads, equally many per cached head; S is a
        multiple of PAGE. The first `lengths_BL` of them count.
        """
        B, L, S = token_BLS.shape
        row_B11 = torch.arange(B, device=token_BLS.device)[:, None, None]
        heads = self.parts[key][0].shape[2]
        head_L1 = (torch.arange(L, device=token_BLS.device) * heads // L)[:, None]

        def copied(name: str) -> list[Tensor]:
            gathered = (buffer[row_B11, token_BLS, head_L1] for buffer in self.parts[name])
            return [x.reshape(B * L * S // PAGE, PAGE, 1, -1) for x in gathered]

        keys, values = copied(key), copied(value)
        page = torch.arange(len(keys[0]), dtype=torch.int32, device=token_BLS.device)
        return PagedCache(
            k_pages=keys[0],
            v_pages=values[0],
            v_dim=values[0].shape[-1],
            page_table=page.view(B * L, -1),
            lengths_B=lengths_BL.flatten().int(),
            k_scale=keys[1].squeeze(-1) if len(keys) == 2 else None,
            v_scale=values[1].squeeze(-1) if len(values) == 2 else None,
        )

    def _in_pages(self, name: str) -> tuple[Tensor, Tensor | None]:
        pages = [buffer.unflatten(1, (-1, PAGE)).flatten(0, 1) for buffer in self.parts[name]]
        return pages[0], pages[1].squeeze(-1) if len(pages) == 2 else None

    @property
    def _used(self) -> int:
        return min(max(self.lengths), self.room or max(self.lengths))

    def _encoded(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) if self.kv == "bf16" else encode(x, (-1,), self.kv)

    def _make_room(self, tokens: int, named: dict[str, Tensor], device: torch.device) -> None:
        wanted = min(tokens, self.room or tokens)
        if not self.parts:
            self.positions_BC = self.positions_BC.to(device)
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
        if self.room is not None and tokens > self.room:  # the positions of the last ones
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
    """A copy that is longer along the second dimension, the new part set to `fill`."""
    B, T, *rest = buffer.shape
    grown = torch.full((B, room, *rest), fill, dtype=torch.float32, device=buffer.device)
    grown = grown.to(buffer.dtype)
    grown[:, :T] = buffer
    return grown


class KeyValues:
    """Tensors x_BCGD by name (keys, values, latents) of the tokens that a pass may attend to.

    Appends the tokens of the pass to `cache`, if there is one. Three cases:
    `prefill`: the tokens are those of the pass, nothing was cached before.
    `decode`: one new token per row; the tokens are those of the cache, the new one among them.
    Neither: several tokens follow cached ones. The new tokens are concatenated behind what was
    cached before, since in a window they may evict tokens that the first of them still sees.

    `positions_BC` are the positions of the tokens, -1 for padding.
    """

    def __init__(
        self,
        cache: TokenCache | None,
        positions_BT: Tensor,
        valid_BT: Tensor | None,
        named: dict[str, Tensor],
    ) -> None:
        self.cache = cache
        self.prefill = cache is None or cache.empty
        self.decode = not self.prefill and positions_BT.shape[1] == 1 and valid_BT is None
        self.positions_BC = positions_BT
        if valid_BT is not None:
            self.positions_BC = torch.where(valid_BT, positions_BT, -1)
        self._named = named
        if cache is None:
            return
        if not self.prefill and not self.decode:
            self._named = {n: torch.cat([cache.read(n), x], 1) for n, x in named.items()}
            self.positions_BC = torch.cat([cache.positions(), self.positions_BC], 1)
        cache.append(positions_BT, valid_BT, **named)
        if self.decode:
            self.positions_BC = cache.positions()

    def __getitem__(self, name: str) -> Tensor:
        if self.decode:
            assert self.cache is not None, "decoding has a cache"
            return self.cache.read(name)
        return self._named[name]

    def pages(
        self, key: str, value: str | None, lengths_B: Tensor, *, value_dim: int | None = None
    ) -> PagedCache:
        """The cached tokens as a paged cache, see `TokenCache.pages`; only for `decode`."""
        assert self.cache is not None, "decoding has a cache"
        room = self.cache.room
        lengths_B = lengths_B if room is None else lengths_B.clamp(max=room)
        return self.cache.pages(key, value, lengths_B, value_dim=value_dim)


class StateCache(Memory):
    """Tensors of constant size by name, one row per sequence: states, convolution tails, shifts."""

    def __init__(self, **named: Tensor) -> None:
        self.named = named

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.named[name] = value

    def tensors(self) -> list[Tensor]:
        return list(self.named.values())


def last_inputs(x_BTN: Tensor, tail_BWN: Tensor, valid_BT: Tensor | None) -> Tensor:
    """The next tail_BWN: the last W valid inputs of each row, `tail_BWN` being those before x."""
    W = tail_BWN.shape[1]
    seen_BSN = torch.cat([tail_BWN, x_BTN], 1)
    if valid_BT is None:
        return seen_BSN[:, seen_BSN.shape[1] - W :].clone()
    start_B1 = valid_BT.sum(1, keepdim=True)
    index_BW = start_B1 + torch.arange(W, device=x_BTN.device)
    return seen_BSN.gather(1, index_BW[..., None].expand(-1, -1, x_BTN.shape[2]))
