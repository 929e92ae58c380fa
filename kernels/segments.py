"""Document boundaries of packed rows: cumulative lengths as segment ids."""

import torch
from torch import Tensor


def segment_ids_from_cu_seqlens(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """segment_ids, int32 [1, num_tokens], of one packed row.

    `cu_seqlens` are cumulative document lengths [documents + 1], from 0 to `num_tokens`, as in
    flash-attention. Raises ValueError if they do not end at `num_tokens`.
    """
    lengths = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != num_tokens or bool((lengths < 0).any()):
        raise ValueError(
            f"cu_seqlens must rise from 0 to num_tokens={num_tokens}, got {cu_seqlens.tolist()}"
        )
    number = torch.arange(len(lengths), dtype=torch.int32, device=cu_seqlens.device)
    return number.repeat_interleave(lengths)[None]
