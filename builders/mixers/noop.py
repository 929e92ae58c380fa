"""The no-op body."""

from typing import Any

import torch
from torch import Tensor

from ...search_space.blocks import noop as record
from ..body import Body, Pass
from ..parameters import Parameters


class NoOp(Body):
    """y = 0: the residual stream passes unchanged."""

    fields = frozenset(record.NoOp.model_fields)

    def __init__(self, block: record.NoOp, params: Parameters) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, run: Pass, cache: Any = None) -> Tensor:
        return torch.zeros_like(x_BTD)
