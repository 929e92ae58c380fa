"""How the recurrent kernels are launched: tiles, warps and stages."""

from typing import Literal

import torch

from ..configs import ARCHS, Config, require_arch
from ..requirements import Unsupported

# one decay for a head or none; one for each channel; that with RWKV-7's two writes
Kind = Literal["head", "channel", "rwkv7"]

# The strongest decays, natural logarithms: the kernels raise smaller ones to these. e^-64 is zero
# beside anything float32 holds, and longer steps would cost the running sums their precision.
MIN_LOG_DECAY_PER_HEAD = -64.0
# e^-20 = 2e-9 is below float32's rounding, 6e-8. The kernels weight q and k by e^{G - R} and
# e^{R - G}, R the sum in the middle of 8 tokens: 4 steps of -20 are e^80, and float32 (the exponents
# of bfloat16 and tf32 too) ends at e^88.7. That leaves a factor of 6000 for the inputs themselves.
MIN_LOG_DECAY_PER_CHANNEL = -20.0

CHUNKS = (16, 32, 64)
LARGEST_FLOAT32_CHUNK = 16  # three products for one, of operands twice as large
SMALLEST_TILE = 16  # of a product
WIDEST_KEY = 256  # a program of `fwd_state` holds all rows of the state;
WIDEST_KEY_ANYWHERE = 128  # without Hopper's warp groups, or in float32, no more than these
MOST_STATES = 64  # of a channel of Mamba-1
MOST_HEADS = 8  # value heads that one program of `bwd_inputs` sums up, where they share a key head

HEAD = {
    "head_gate": Config(tiles={"BH": 32}, warps=4),
    "fwd_intra": Config(tiles={"BK": 64}, warps=4),
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=4),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=4),
    "bwd_intra": Config(tiles={"BV": 64}, warps=4),
    "bwd_inputs": Config(tiles={"BK": 64, "BV": 32}, warps=8, stages=1),
    "step": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=4),
}
# the levels of `fwd_intra` and `bwd_inputs` hold a weight for each element of a tile
CHANNEL = HEAD | {
    "channel_gate": Config(tiles={"BK": 32}, warps=4),
    "fwd_intra": Config(tiles={"BK": 32}, warps=8),
    "bwd_inputs": Config(tiles={"BK": 32, "BV": 64}, warps=8, stages=1),
}
RWKV7 = CHANNEL | {"bwd_inputs": Config(tiles={"BK": 16, "BV": 64}, warps=8, stages=1)}

WIDE_KEYS = {
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=8, stages=1),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=8, stages=1),
}
WITH_WARP_GROUPS = ("sm_90", "sm_100")
# elsewhere the operands of a product lie in registers too
WITHOUT = {
    "fwd_intra": Config(tiles={"BK": 32}, warps=8, stages=1),
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=8),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=8),
    "bwd_inputs": Config(tiles={"BK": 16, "BV": 64}, warps=8, stages=1),
}
# for exactness, not for speed: with keys 128 wide `fwd_state` still spills half a kilobyte
FLOAT32 = {
    "fwd_intra": Config(tiles={"BK": 32}, warps=4),
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=4, stages=1),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=4, stages=1),
    "bwd_intra": Config(tiles={"BV": 32}, warps=4),
    "bwd_inputs": Config(tiles={"BK": 16, "BV": 32}, warps=4, stages=1),
}


def _table(arch: str, kernels: dict[str, Config], dtype: torch.dtype) -> dict[str, Config]:
    if dtype == torch.float32:
        return kernels | FLOAT32
    return kernels if arch in WITH_WARP_GROUPS else kernels | WITHOUT


TABLE = {
    (arch, kind, dtype): _table(arch, kernels, dtype)
    for arch in ARCHS
    for kind, kernels in (("head", HEAD), ("channel", CHANNEL), ("rwkv7", RWKV7))
    for dtype in (torch.bfloat16, torch.float32)
}

# The scans without products: a program walks all tokens of BN channels, UNROLL of them in flight.
CHANNEL_SCANS = {
    "channels": Config(tiles={"BN": 64, "UNROLL": 16}, warps=2),
    "channels_backward": Config(tiles={"BN": 64, "UNROLL": 16}, warps=2),
    "selective": Config(tiles={"BN": 32, "UNROLL": 8}, warps=4),
    "selective_backward": Config(tiles={"BN": 32, "UNROLL": 8}, warps=8),
}


def config_for(arch: str, kernel: str, kind: Kind, dtype: torch.dtype, K: int, V: int) -> Config:
    """No tile is wider than keys K or values V need."""
    require_arch(arch)
    config = TABLE[arch, kind, dtype][kernel]
    if K > WIDEST_KEY_ANYWHERE:
        held = dtype == torch.bfloat16 and arch in WITH_WARP_GROUPS
        if kernel in WIDE_KEYS and not held:
            raise Unsupported(
                f"{kernel} needs keys at most {WIDEST_KEY_ANYWHERE} wide on {arch} in {dtype}, got K={K}"
            )
        config = WIDE_KEYS.get(kernel, config)
    widths = {"BK": K, "BV": V}
    tiles = {
        name: min(size, tile_of(widths[name])) if name in widths else size
        for name, size in config.tiles.items()
    }
    return Config(tiles=tiles, warps=config.warps, stages=config.stages)


def tile_of(width: int) -> int:
    """The narrowest tile that holds `width`."""
    return max(SMALLEST_TILE, 1 << (width - 1).bit_length())


def chunk_of(chunk: int, dtype: torch.dtype) -> int:
    """The tokens that kernels take at once where `chunk` are asked for."""
    return min(chunk, LARGEST_FLOAT32_CHUNK) if dtype == torch.float32 else chunk


def precision_of(dtype: torch.dtype) -> str:
    """How a product takes float32: as three of tf32 beside float32 inputs, as one beside bfloat16,
    where only an inverse has it. Never as ieee: a 64-wide tile spills 19 000 registers.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"
