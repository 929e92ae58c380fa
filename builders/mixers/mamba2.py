"""Mamba-2: the state-space mixer with one scalar decay a head."""

# B batch, T tokens, D model width, G groups of heads, H heads, K state width, V head width

from torch import Tensor

from ...kernels.rows import op as rows
from ...search_space.blocks import mamba2 as record
from ..parts import Parts
from .recurrent import Recurrence, Recurrent, RecurrentCache


class Mamba2(Recurrent):
    """SSD (arXiv 2405.21060) is the linear recurrence with q = C, k = B, v = dt x, decay = dt A."""

    def __init__(self, block: record.Mamba2, parts: Parts) -> None:
        super().__init__(block, parts, (block.heads, block.d_state, block.head_dim))
        self.block = block
        self.D = parts.filled("D", 1.0)

    def mix(self, x_BTD: Tensor, cache: RecurrentCache, recur: Recurrence) -> Tensor:
        block, shared = self.block, self.block.groups * self.block.d_state
        widths = [block.d_inner, block.conv_width, block.heads]
        z, xBC, raw_BTH = self.in_proj(x_BTD).split(widths, -1)
        xBC, cache.tail_BWN = self.conv(xBC, cache.tail_BWN)
        x, k, q = xBC.split([block.d_inner, shared, shared], -1)
        x_BTHV = x.unflatten(-1, (block.heads, block.head_dim))
        k_BTGK, q_BTGK = (part.unflatten(-1, (block.groups, block.d_state)) for part in (k, q))
        dt_BTH, decay_BTH = self.rates(raw_BTH)
        v_BTHV = dt_BTH[..., None] * x_BTHV
        y_BTHV, cache.state_BHKV = recur(q_BTGK, k_BTGK, v_BTHV, decay_BTH, None, cache.state_BHKV)
        y = (y_BTHV + self.D[:, None] * x_BTHV).to(x_BTD.dtype).flatten(-2)
        return self.out_proj(self.norm(rows.swiglu(z, y)))
