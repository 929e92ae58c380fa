"""Launch configurations of the attention kernels, per architecture, dtype and head width.

M and N are the queries and keys of a tile, swapped in kernels that loop over queries. All were
chosen by what compiles without spills and fits; none was timed.
"""

from collections.abc import Mapping

import torch

from ..configs import Config, require_arch
from ..requirements import Unsupported
from .arguments import tile_width

HALF, FLOAT, INT8, FLOAT8 = "16 bits", "float32", "int8", "float8_e4m3fn"
KIND = {
    torch.bfloat16: HALF,
    torch.float16: HALF,
    torch.float32: FLOAT,
    torch.int8: INT8,
    torch.float8_e4m3fn: FLOAT8,
}
Classes = Mapping[int, Config]  # widest head -> its configuration, narrowest first
Tables = Mapping[tuple[str, str], Classes]  # (kernel, kind of dtype)


def _tiles(M: int, N: int, warps: int, stages: int) -> Config:
    return Config(tiles={"M": M, "N": N}, warps=warps, stages=stages)


def _keys(N: int, warps: int, stages: int) -> Config:
    return Config(tiles={"N": N}, warps=warps, stages=stages)


DELTA = {
    width: Config(tiles={"M": rows}, warps=4)
    for width, rows in ((64, 64), (128, 32), (256, 16), (512, 8))
}
DECODE = {
    64: _tiles(32, 64, 4, 5),
    128: _tiles(32, 64, 4, 5),
    192: _tiles(32, 64, 4, 5),
    256: _tiles(32, 32, 4, 5),
    576: _tiles(32, 32, 8, 3),
}
EVERYWHERE: Tables = {
    ("backward_delta", HALF): DELTA,
    ("backward_delta", FLOAT): DELTA,
    ("forward", FLOAT): {64: _tiles(32, 32, 4, 2), 128: _tiles(16, 32, 4, 2)},
    ("backward_keys", FLOAT): {64: _tiles(32, 16, 4, 2), 128: _tiles(16, 16, 4, 2)},
    ("backward_queries", FLOAT): {64: _tiles(16, 32, 4, 2), 128: _tiles(16, 16, 4, 2)},
    ("decode_split", HALF): DECODE,
    ("decode_split", INT8): DECODE | {576: _tiles(32, 16, 8, 4)},
    ("decode_split", FLOAT): {192: _tiles(16, 32, 4, 3)},
    ("decode_combine", FLOAT): {512: Config(tiles={"COLS": 64}, warps=4)},
    ("blocks_forward", HALF): {128: _keys(64, 4, 3), 192: _keys(64, 4, 2), 256: _keys(32, 4, 3)},
    ("blocks_forward", FLOAT): {128: _keys(32, 4, 2)},
    ("blocks_backward_queries", HALF): {
        128: _keys(64, 4, 3),
        192: _keys(64, 4, 2),
        256: _keys(32, 4, 3),
    },
    ("blocks_backward_queries", FLOAT): {128: _keys(32, 4, 2)},
    ("selected_forward", HALF): {
        128: _tiles(64, 64, 4, 3),
        256: _tiles(64, 32, 8, 2),
        576: _tiles(32, 32, 8, 2),
    },
    ("selected_forward", FLOAT): {128: _tiles(16, 32, 4, 2)},
    ("blocks_backward_keys", FLOAT): {64: _tiles(32, 32, 8, 2), 128: _tiles(32, 16, 8, 2)},
}
SMALL: Tables = EVERYWHERE | {
    ("forward", HALF): {
        64: _tiles(128, 64, 8, 3),
        128: _tiles(128, 32, 8, 3),
        256: _tiles(64, 32, 8, 2),
    },
    ("backward_keys", HALF): {
        128: _tiles(64, 64, 8, 2),
        256: _tiles(32, 32, 8, 2),
    },
    ("backward_queries", HALF): {
        64: _tiles(128, 64, 8, 2),
        128: _tiles(64, 64, 8, 2),
        192: _tiles(32, 32, 4, 2),
        256: _tiles(32, 32, 8, 2),
    },
    ("blocks_backward_keys", HALF): {
        64: _tiles(32, 64, 4, 2),
        128: _tiles(32, 64, 8, 2),
        256: _tiles(32, 32, 8, 2),
    },
}
EIGHT_BITS: Tables = {("decode_split", FLOAT8): DECODE}
AMPERE: Tables = SMALL | {
    ("forward", HALF): SMALL["forward", HALF] | {512: _tiles(32, 16, 8, 2)},
    ("backward_keys", HALF): {
        128: _tiles(64, 64, 8, 2),
        192: _tiles(32, 32, 8, 2),
        256: _tiles(32, 64, 8, 2),
        512: _tiles(32, 32, 8, 2),
    },
    ("backward_queries", HALF): SMALL["backward_queries", HALF] | {512: _tiles(32, 16, 8, 2)},
}
HOPPER: Tables = (
    EVERYWHERE
    | EIGHT_BITS
    | {
        ("forward", HALF): {
            128: _tiles(128, 128, 8, 3),
            192: _tiles(128, 64, 8, 3),
            256: _tiles(128, 32, 8, 3),
            512: _tiles(32, 16, 8, 2),
        },
        ("backward_keys", HALF): {
            64: _tiles(64, 128, 8, 3),
            192: _tiles(32, 128, 8, 3),
            256: _tiles(32, 128, 8, 2),
            512: _tiles(32, 32, 8, 2),
        },
        ("backward_queries", HALF): {
            64: _tiles(128, 128, 8, 2),
            128: _tiles(128, 64, 8, 3),
            192: _tiles(128, 32, 8, 3),
            256: _tiles(128, 32, 8, 2),
            512: _tiles(32, 16, 8, 2),
        },
        ("blocks_backward_keys", HALF): {
            64: _tiles(64, 64, 4, 2),
            128: _tiles(64, 64, 8, 2),
            192: _tiles(32, 64, 8, 2),
            256: _tiles(32, 32, 8, 2),
        },
    }
)
BLACKWELL: Tables = HOPPER | {
    ("selected_forward", HALF): EVERYWHERE["selected_forward", HALF] | {576: _tiles(64, 32, 8, 2)},
    ("backward_keys", HALF): {
        64: _tiles(64, 128, 8, 3),
        128: _tiles(64, 128, 8, 2),
        192: _tiles(32, 128, 8, 3),
        256: _tiles(32, 128, 8, 2),
        512: _tiles(32, 32, 8, 2),
    },
    ("backward_queries", HALF): HOPPER["backward_queries", HALF] | {192: _tiles(128, 64, 8, 2)},
}
ADA: Tables = SMALL | EIGHT_BITS
BLACKWELL_SM_120: Tables = ADA | {
    ("backward_keys", HALF): {
        128: _tiles(64, 64, 8, 2),
        192: _tiles(32, 32, 4, 2),
        256: _tiles(32, 32, 8, 2),
    },
}
TABLE: Mapping[str, Tables] = {
    "sm_80": AMPERE,
    "sm_89": ADA,
    "sm_90": HOPPER,
    "sm_100": BLACKWELL,
    "sm_120": BLACKWELL_SM_120,
}
# smaller tiles for calls with a window, segments or a soft cap, which take registers
EXTRA_MASKING: Mapping[tuple[str, str, str], Classes] = {
    ("sm_90", "forward", HALF): {128: _tiles(128, 64, 8, 3)},
    ("sm_90", "backward_queries", HALF): {64: _tiles(128, 64, 8, 3)},
    ("sm_100", "forward", HALF): {128: _tiles(128, 64, 8, 3)},
    ("sm_100", "backward_queries", HALF): {64: _tiles(128, 64, 8, 3)},
}


def config_for(
    arch: str, kernel: str, dtype: torch.dtype, K: int, V: int, *, extra_masking: bool = False
) -> Config:
    """The configuration of the narrowest class that holds keys of width K and values of width V.

    Raises Unsupported for an unknown `arch`, and where the kernel has no class for these there.
    """
    require_arch(arch)
    kind = KIND[dtype]
    classes = TABLE[arch].get((kernel, kind), {})
    if extra_masking:
        classes = {**classes, **EXTRA_MASKING.get((arch, kernel, kind), {})}
    width = max(K, tile_width(V))
    for widest, config in classes.items():
        if width <= widest:
            return config
    constraint = f"needs heads of at most {max(classes)}" if classes else "does not run"
    raise Unsupported(f"{kernel} in {kind} {constraint} on {arch}, got {K=}, {V=}")
