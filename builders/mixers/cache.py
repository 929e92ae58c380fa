"""What attention keeps of each token it has read."""

# B batch, T tokens, H heads, D head width

from torch import Tensor

from ..precision import decode, encode

PAGE = 256  # tokens a cache grows by: copying it then costs 1/256 of the reading in between


class TokenCache:
    """x_BTHD of the last `window` tokens, of all where None; their order in a window is lost.

    With `fp8` it holds e4m3 values and one fp32 scale a token and head.
    """

    def __init__(self, x_BTHD: Tensor, *, window: int | None, fp8: bool) -> None:
        self.window = window
        self.dtype = x_BTHD.dtype
        self.fp8 = fp8
        self.length = x_BTHD.shape[1]  # tokens read so far
        kept = x_BTHD
        if window is not None and self.length > window:  # token t has its place at t mod window
            kept = x_BTHD[:, -window:].roll(self.length % window, 1)
        self.buffers = [part.clone() for part in self._parts(kept)]

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return encode(x, (-1,)) if self.fp8 else (x,)

    def append(self, x_B1HD: Tensor) -> None:
        place = self.length if self.window is None else self.length % self.window
        if place == self.buffers[0].shape[1]:
            room = PAGE if self.window is None else min(PAGE, self.window - place)
            self.buffers = [_grown(buffer, room) for buffer in self.buffers]
        for buffer, part in zip(self.buffers, self._parts(x_B1HD), strict=True):
            buffer[:, place : place + 1] = part
        self.length += 1

    def read(self) -> Tensor:
        held = [buffer[:, : self.length] for buffer in self.buffers]
        return decode(*held).to(self.dtype) if self.fp8 else held[0]


def _grown(buffer: Tensor, room: int) -> Tensor:
    B, T, *rest = buffer.shape
    grown = buffer.new_empty(B, T + room, *rest)
    grown[:, :T] = buffer
    return grown
