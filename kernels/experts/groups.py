"""Which rows belong to which expert, found on the device without waiting for it."""

# M rows, E experts

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The rows `order_M[offsets_E1[e] : offsets_E1[e + 1]]` are those of expert e, in their order.

    Rows of no expert follow the last one's.
    """

    order_M: Tensor  # int64
    offsets_E1: Tensor  # int32: cumulative counts, from 0


def group(expert_M: Tensor, n_experts: int) -> Groups:
    """By a stable sort, so equal inputs give equal orders. An expert below 0 is none."""
    sorted_M, order_M = torch.where(expert_M < 0, n_experts, expert_M).sort(stable=True)
    bound_E1 = torch.arange(n_experts + 1, device=expert_M.device, dtype=expert_M.dtype)
    return Groups(
        order_M=order_M, offsets_E1=torch.searchsorted(sorted_M, bound_E1, out_int32=True)
    )


def rows_of_expert(groups: Groups, num_rows: int) -> list[int]:
    """How many rows each expert has, and last how many belong to none. Waits for the device.

    On the meta device nothing is counted: the first expert has them all.
    """
    if groups.offsets_E1.is_meta:
        return [num_rows, *[0] * (len(groups.offsets_E1) - 1)]
    counts = groups.offsets_E1.diff().tolist()
    return [*counts, num_rows - sum(counts)]
