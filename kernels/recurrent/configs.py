"""Launch configurations of the recurrent kernels, and the bounds of their inputs."""

from typing import Literal

import torch

from ..configs import ARCHS, Config, require_arch
from ..requirements import Unsupported

# scalar decay or none; decay per channel; RWKV-7's two writes (decay per channel too)
Kind = Literal["head", "channel", "rwkv7"]

# The strongest decays, natural logarithms: the kernels raise smaller ones to these. e^-64 is zero
# beside anything float32 holds, and longer steps would cost the running sums their precision.
MIN_LOG_DECAY_PER_HEAD = -64.0
# e^-20 = 2e-9 is below float32's rounding, 6e-8. The kernels weight q and k by e^{G - R} and
# e^{R - G}, R the sum in the middle of 8 tokens: 4 steps of -20 are e^80, and float32 ends at
# e^88.7 (bfloat16 and tf32 have its exponents). That leaves a factor of 6000 for the inputs.
MIN_LOG_DECAY_PER_CHANNEL = -20.0

CHUNKS = (16, 32, 64)
LARGEST_FLOAT32_CHUNK = 16  # tf32x3: three products in place of one, operands twice as large
SMALLEST_TILE = 16  # operand of tl.dot
WIDEST_KEY = 256  # a program of `fwd_state` holds all K rows of the state
WIDEST_KEY_ANYWHERE = 128  # the same without warp-group MMA, or in float32
MOST_STATES = 64  # per channel of Mamba-1
MOST_HEADS = 8  # value heads of one key head that a program of `bwd_inputs` sums over

HEAD = {
    "head_gate": Config(tiles={"BH": 32}, warps=4),
    "fwd_intra": Config(tiles={"BK": 64}, warps=4),
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=4),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=4),
    "bwd_intra": Config(tiles={"BV": 64}, warps=4),
    "bwd_inputs": Config(tiles={"BK": 64, "BV": 32}, warps=8, stages=1),
    "step": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=4),
}
# a decay per channel: the levels of `fwd_intra` and `bwd_inputs` hold a weight per tile element
CHANNEL = HEAD | {
    "channel_gate": Config(tiles={"BK": 32}, warps=4),
    "fwd_intra": Config(tiles={"BK": 32}, warps=8),
    "bwd_inputs": Config(tiles={"BK": 32, "BV": 64}, warps=8, stages=1),
}
RWKV7 = CHANNEL | {"bwd_inputs": Config(tiles={"BK": 16, "BV": 64}, warps=8, stages=1)}

KINDS: dict[Kind, dict[str, Config]] = {"head": HEAD, "channel": CHANNEL, "rwkv7": RWKV7}

WIDE_KEYS = {
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=8, stages=1),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=8, stages=1),
}
WITH_WARP_GROUPS = ("sm_90", "sm_100")
# mma.sync, in place of warp-group MMA, keeps operands in registers too
MMA_SYNC = {
    "fwd_intra": Config(tiles={"BK": 32}, warps=8, stages=1),
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=8),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 32}, warps=8),
    "bwd_inputs": Config(tiles={"BK": 16, "BV": 64}, warps=8, stages=1),
}
# for exactness, not for speed: at K = 128 `fwd_state` still spills half a kilobyte
FLOAT32 = {
    "fwd_intra": Config(tiles={"BK": 32}, warps=4),
    "fwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=4, stages=1),
    "bwd_state": Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=4, stages=1),
    "bwd_intra": Config(tiles={"BV": 32}, warps=4),
    "bwd_inputs": Config(tiles={"BK": 16, "BV": 32}, warps=4, stages=1),
}
# Where BV = 32 spills.
NARROW_STATE = Config(tiles={"BK": WIDEST_KEY, "BV": 16}, warps=8)
NARROW_STATES: dict[tuple[str, Kind], dict[str, Config]] = {
    ("sm_89", "rwkv7"): {"bwd_state": NARROW_STATE},
    ("sm_120", "head"): {"fwd_state": NARROW_STATE},
    ("sm_120", "channel"): {"fwd_state": NARROW_STATE},
    ("sm_120", "rwkv7"): {"fwd_state": NARROW_STATE, "bwd_state": NARROW_STATE},
}


def _table(
    arch: str, kind: Kind, kernels: dict[str, Config], dtype: torch.dtype
) -> dict[str, Config]:
    if dtype == torch.float32:
        return kernels | FLOAT32
    if arch in WITH_WARP_GROUPS:
        return kernels
    return kernels | MMA_SYNC | NARROW_STATES.get((arch, kind), {})


TABLE: dict[tuple[str, Kind, torch.dtype], dict[str, Config]] = {
    (arch, kind, dtype): _table(arch, kind, kernels, dtype)
    for arch in ARCHS
    for kind, kernels in KINDS.items()
    for dtype in (torch.bfloat16, torch.float32)
}

# Scans per channel: a program loops over all tokens of BN channels, UNROLL loads in flight.
CHANNEL_SCANS = {
    "channels": Config(tiles={"BN": 64, "UNROLL": 16}, warps=2),
    "channels_backward": Config(tiles={"BN": 64, "UNROLL": 16}, warps=2),
    "selective": Config(tiles={"BN": 32, "UNROLL": 8}, warps=4),
    "selective_backward": Config(tiles={"BN": 32, "UNROLL": 8}, warps=8),
}


def config_for(arch: str, kernel: str, kind: Kind, dtype: torch.dtype, K: int, V: int) -> Config:
    """The launch of `kernel` for keys K and values V wide, tiles no wider than these need.

    Raises Unsupported for an unknown `arch`, and where K is wider than the kernel can hold.
    """
    require_arch(arch)
    config = TABLE[arch, kind, dtype][kernel]
    if K > WIDEST_KEY_ANYWHERE:
        held = dtype == torch.bfloat16 and arch in WITH_WARP_GROUPS
        if kernel in WIDE_KEYS and not held:
            raise Unsupported(
                f"{kernel} needs keys at most {WIDEST_KEY_ANYWHERE} wide on {arch} in {dtype}, "
                f"got K={K}"
            )
        config = WIDE_KEYS.get(kernel, config)
    widths = {"BK": K, "BV": V}
    tiles = {
        name: min(size, tile_of(widths[name])) if name in widths else size
        for name, size in config.tiles.items()
    }
    return Config(tiles=tiles, warps=config.warps, stages=config.stages)


def tile_of(width: int) -> int:
    """The smallest power of two, at least 16, that holds `width`."""
    return max(SMALLEST_TILE, 1 << (width - 1).bit_length())


def chunk_of(chunk: int, dtype: torch.dtype) -> int:
    """The chunk size that the kernels use where the caller asks for `chunk`."""
    return min(chunk, LARGEST_FLOAT32_CHUNK) if dtype == torch.float32 else chunk


def precision_of(dtype: torch.dtype) -> str:
    """Precision of products of float32 operands: "tf32x3" for float32 inputs, "tf32" for bfloat16
    ones (only the inverse has such operands then). "ieee" would spill 19 000 registers at C = 64.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"
