"""Rows grouped by expert, computed on the device without a host sync."""

# M rows, E experts

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Rows by expert: `order_M[offsets_E1[e] : offsets_E1[e + 1]]` are those of expert e, in order.

    Rows of no expert come after the last expert's.
    """

    order_M: Tensor  # int64
    offsets_E1: Tensor  # int32: cumulative counts, from 0


def group(expert_M: Tensor, n_experts: int) -> Groups:
    """Groups of rows by `expert_M` [M], integers in 0 ... n_experts - 1; below 0 is none.

    A stable sort: equal inputs give equal orders.
    """
    sorted_M, order_M = torch.where(expert_M < 0, n_experts, expert_M).sort(stable=True)
    bound_E1 = torch.arange(n_experts + 1, device=expert_M.device, dtype=expert_M.dtype)
    return Groups(
        order_M=order_M, offsets_E1=torch.searchsorted(sorted_M, bound_E1, out_int32=True)
    )


def rows_of_expert(groups: Groups, num_rows: int) -> list[int]:
    """Number of rows per expert, and last of those of no expert. Waits for the device.

    On the meta device the first expert has all rows.
    """
    if groups.offsets_E1.is_meta:
        return [num_rows, *[0] * (len(groups.offsets_E1) - 1)]
    counts = groups.offsets_E1.diff().tolist()
    return [*counts, num_rows - sum(counts)]
