"""Arguments that the attention kernels share (masks, scores, strides, widths), and input checks."""

from dataclasses import dataclass
from math import e, log2
from typing import Any

import torch
from torch import Tensor
from triton import next_power_of_2

from ..launch import require_device
from ..requirements import require, require_float

SMALLEST_TILE = 16  # operand of tl.dot
SMALLEST_SPLIT = 128  # a narrower key is not worth two dots


@dataclass(frozen=True, kw_only=True)
class ScoreRules:
    """Mask and score options of a call: the keywords of `attend`, segments as bounds."""

    start_BT: Tensor | None  # first token of each token's segment, int32; None: one segment
    end_BT: Tensor | None  # first token after it
    causal: bool
    window: int | None
    scale: float
    softcap: float | None

    @property
    def extra_masking(self) -> bool:
        """Whether a window, segments or a soft cap need registers of their own: see configs.py."""
        return not (self.window is self.start_BT is self.softcap is None)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by the kernels' names."""
        return {
            "start_ptr": self.start_BT,
            "end_ptr": self.end_BT,
            "window": self.window or 0,
            **score_arguments(self.scale, self.softcap),
            "CAUSAL": self.causal,
            "WINDOW": self.window is not None,
            "USE_SEGMENT_IDS": self.start_BT is not None,
        }


def score_arguments(scale: float, softcap: float | None) -> dict[str, Any]:
    """Base-2 scores: factor * q k^T, or factor * tanh(q k^T * softcap_scale / (2 log2(e)))."""
    if softcap is None:
        return {"softcap_scale": 0.0, "factor": scale * log2(e), "SOFTCAP": False}
    softcap_scale = 2 * log2(e) * scale / softcap
    return {"softcap_scale": softcap_scale, "factor": softcap * log2(e), "SOFTCAP": True}


def inputs(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor) -> dict[str, Any]:
    """Pointers, strides and widths of the queries, keys and values of a sequence."""
    return {
        "q_ptr": q_BTHK,
        "k_ptr": k_BTGK,
        "v_ptr": v_BTGV,
        **_strides(q=q_BTHK, k=k_BTGK, v=v_BTGV),
        "group": q_BTHK.shape[2] // k_BTGK.shape[2],
        **widths(q_BTHK.shape[3], v_BTGV.shape[3]),
    }


def _strides(**tensors: Tensor) -> dict[str, int]:
    return {
        f"{name}_{axis}": stride
        for name, x in tensors.items()
        for axis, stride in zip(("batch", "token", "head"), x.stride()[:3], strict=True)
    }


def tile_width(width: int) -> int:
    """The smallest power of two, at least SMALLEST_TILE, that holds `width`."""
    return max(SMALLEST_TILE, next_power_of_2(width))


def widths(K: int, V: int) -> dict[str, int]:
    """Tile widths; K is split in two powers of two where that is narrower: 192 = 128 + 64."""
    whole = tile_width(K)
    main = whole // 2
    rest = tile_width(K - main)
    cut = main >= SMALLEST_SPLIT and main + rest < whole
    tiles = {"K_MAIN": main, "K_REST": rest} if cut else {"K_MAIN": whole, "K_REST": 0}
    return {"K": K, **tiles, "V": V, "V_TILE": tile_width(V)}


def segment_bounds(segment_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(start_BT, end_BT): the first token of each token's segment, and the first one after it."""
    segment_ids_BT = segment_ids_BT.contiguous()
    start_BT = torch.searchsorted(segment_ids_BT, segment_ids_BT, out_int32=True)
    return start_BT, torch.searchsorted(segment_ids_BT, segment_ids_BT, right=True, out_int32=True)


def require_scores(scale: float, softcap: float | None) -> None:
    """Raise Unsupported unless scale and soft cap are positive."""
    require(scale > 0, "scale must be > 0: it is factored out of a maximum", scale=scale)
    require(softcap is None or softcap > 0, "softcap must be > 0", softcap=softcap)


def require_heads(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, segment_ids_BT: Tensor | None
) -> None:
    """Raise Unsupported unless the kernels take the queries, keys and values of a sequence."""
    require_device(q_BTHK)
    require_float(q_BTHK, "q")
    shapes = {n: tuple(x.shape) for n, x in (("q", q_BTHK), ("k", k_BTGK), ("v", v_BTGV))}
    constraint = "q, k and v must be [B, T, H, K], [B, T, G, K] and [B, T, G, V], no size 0"
    require(all(len(s) == 4 and 0 not in s for s in shapes.values()), constraint, **shapes)
    (B, T, H, K), G = q_BTHK.shape, k_BTGK.shape[2]
    require(shapes["k"] == (B, T, G, K) and shapes["v"][:3] == (B, T, G), constraint, **shapes)
    require(H % G == 0, "the key/value heads must divide the query heads", heads=H, kv_heads=G)
    for name, x in (("k", k_BTGK), ("v", v_BTGV)):
        same = (x.dtype, x.device) == (q_BTHK.dtype, q_BTHK.device)
        constraint = f"{name} must have q's dtype and device {q_BTHK.dtype} {q_BTHK.device}"
        require(same, constraint, dtype=x.dtype, device=x.device)
    for name, x in (("q", q_BTHK), ("k", k_BTGK), ("v", v_BTGV)):
        dense = x.stride(-1) == 1 or x.shape[-1] == 1
        require(dense, f"the last dimension of {name} must be contiguous", strides=x.stride())
    if segment_ids_BT is not None:
        require(
            (tuple(segment_ids_BT.shape), segment_ids_BT.dtype, segment_ids_BT.device)
            == ((B, T), torch.int32, q_BTHK.device),
            f"segment_ids must be {(B, T)} torch.int32 on {q_BTHK.device}",
            shape=tuple(segment_ids_BT.shape),
            dtype=segment_ids_BT.dtype,
            device=segment_ids_BT.device,
        )
