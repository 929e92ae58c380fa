"""Boundaries of sequences packed into one row, as segment ids or as cumulative lengths."""

# B batch, T tokens, N sequences of a packed row

import torch
from torch import Tensor


def segment_ids_from_cu_seqlens(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """int32 [1, num_tokens]: the number of the sequence that each token belongs to, from 0.

    `cu_seqlens` [N + 1], int32 or int64, are cumulative lengths as flash-attention and fla take
    them: 0 first, nondecreasing, `num_tokens` last. A sequence of length 0 leaves its number out.
    The values are not checked, since that would wait for the device. Raises ValueError where the
    shape or dtype is another.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "cu_seqlens must be int32 or int64 of shape [sequences + 1], "
            f"got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    token_T = torch.arange(num_tokens, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    ends_N = cu_seqlens[1:].contiguous()
    return torch.searchsorted(ends_N, token_T, right=True, out_int32=True)[None]


def resolve_segment_ids(
    segment_ids: Tensor | None, cu_seqlens: Tensor | None, x_BT: Tensor
) -> Tensor | None:
    """The segment ids of `x_BT` [B, T, ...], whichever of the two was given; None if neither was.

    Raises ValueError where both are given, or `cu_seqlens` beside a batch of more than one row.
    """
    if cu_seqlens is None:
        return segment_ids
    if segment_ids is not None:
        raise ValueError("give segment_ids or cu_seqlens, not both")
    batch, num_tokens = x_BT.shape[:2]
    if batch != 1:
        raise ValueError(f"cu_seqlens needs all sequences packed in one row, got batch={batch}")
    return segment_ids_from_cu_seqlens(cu_seqlens, num_tokens)
