"""The body that adds nothing."""

from typing import Any

import torch
from torch import Tensor

from ...search_space.blocks import noop as record
from ..body import Body, Pass
from ..parts import Parts


class NoOp(Body):
    fields = frozenset(record.NoOp.model_fields)

    def __init__(self, block: record.NoOp, parts: Parts) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, run: Pass, cache: Any = None) -> Tensor:
        return torch.zeros_like(x_BTD)
