"""RWKV-7: the time mixer with a generalized delta rule, and its channel mixer."""

# B batch, T tokens, D model width, H heads, K head width, N = H K

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...search_space.blocks import rwkv7 as record
from ..body import Body, Pass
from ..caches import StateCache, last_inputs
from ..parts import Parts
from .recurrent import Recurrent, kept, one_token, unit

STRONGEST_DECAY = -0.6065306597126334  # -e^(-1/2), the log of the least that a channel keeps
NORM_EPS = 64e-5  # of the norm of a head, whose values are 64 wide
VALUES = "values of the first RWKV-7"  # what later ones find in a pass


def shifted(x_BTD: Tensor, run: Pass, cache: StateCache | None) -> Tensor:
    """The input of the token before; zeros in front of a document."""
    if cache is None:
        before = F.pad(x_BTD, (0, 0, 1, -1))
        if run.segment_ids_BT is not None:
            same_BT = run.segment_ids_BT == F.pad(run.segment_ids_BT, (1, -1), value=-1)
            before = before * same_BT[..., None].to(x_BTD.dtype)
        return before
    before = torch.cat([cache["shift"], x_BTD[:, :-1]], 1)
    cache["shift"] = last_inputs(x_BTD, cache["shift"], run.valid_BT)
    return before


class RWKV7(Recurrent):
    """The time mix of arXiv 2503.14456, section 3; names as in its reference code."""

    fields = frozenset(record.RWKV7.model_fields)

    def __init__(self, block: record.RWKV7, parts: Parts) -> None:
        super().__init__((block.heads, block.head_dim, block.head_dim), None, parts)
        self.block, self.first = block, parts.first
        self.shift = nn.ParameterDict({of: parts.uniform(f"shift.{of}", 0, 1) for of in "rwkvag"})
        self.r_proj, self.k_proj, self.v_proj = (parts.linear(f"{of}_proj") for of in "rkv")
        for name in ["decay", "a"] if parts.first else ["decay", "a", "v"]:
            self.add_module(f"{name}_a_proj", parts.linear(f"{name}_a_proj"))
            self.add_module(f"{name}_b_proj", parts.linear(f"{name}_b_proj"))
        self.gate_a_proj, self.gate_b_proj = (
            parts.linear("gate_a_proj"),
            parts.linear("gate_b_proj"),
        )
        self.k_k, self.k_a = parts.filled("k_k", 0.85), parts.filled("k_a", 1.0)
        self.r_k = parts.filled("r_k", 0.0)
        self.norm = parts.layer_norm("norm", NORM_EPS)
        self.out_proj = parts.linear("out_proj", to_residual=True)
        self.width = self.shift["r"].shape[0]

    def new_cache(self, batch: int) -> StateCache:
        cache = super().new_cache(batch)
        cache["shift"] = torch.zeros(batch, 1, self.width, device=self.device, dtype=self.dtype)
        return cache

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        heads = (self.block.heads, -1)
        change = shifted(x_BTD, run, cache) - x_BTD
        xr, xw, xk, xv, xa, xg = (x_BTD + change * self.shift[of] for of in "rwkvag")
        r_BTN, k_BTN, v_BTN = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        decay_BTN = STRONGEST_DECAY * self._offset("decay", xw, torch.tanh).to(self.wide).sigmoid()
        if self.first:
            run.left[VALUES] = v_BTN
        else:
            v_BTN = v_BTN + (run.left[VALUES] - v_BTN) * self._offset("v", xv).sigmoid()
        rate_BTN = self._offset("a", xa).sigmoid()
        gate_BTN = self.gate_b_proj(self.gate_a_proj(xg).sigmoid())
        removed_BTHK = unit((k_BTN * self.k_k.to(k_BTN.dtype)).unflatten(-1, heads))
        k_BTN = k_BTN * (1 + (rate_BTN - 1) * self.k_a.to(k_BTN.dtype))
        r, w, k, v, rate = (
            x.unflatten(-1, heads) for x in (r_BTN, decay_BTN, k_BTN, v_BTN, rate_BTN)
        )
        o_BTHK = self._recur(r, w, k, v, -removed_BTHK, removed_BTHK * rate, run, cache)
        o_BTN = self._normed(o_BTHK)
        bonus_BTHK = (r * k * self.r_k.unflatten(0, heads).to(r.dtype)).sum(-1, keepdim=True) * v
        return self.out_proj((o_BTN + bonus_BTHK.flatten(-2)) * gate_BTN)

    def _offset(self, name: str, x: Tensor, inside: Any = None) -> Tensor:
        """Through a bottleneck with a bias behind it."""
        low = self.get_submodule(f"{name}_a_proj")(x)
        return self.get_submodule(f"{name}_b_proj")(low if inside is None else inside(low))

    def _recur(
        self,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        run: Pass,
        cache: StateCache | None,
    ) -> Tensor:
        if cache is None:
            return recurrent.rwkv7_recurrence(r, w, k, v, a, b, segment_ids=run.segment_ids_BT)[0]
        if one_token(run):
            r, w, k, v, a, b = (x[:, 0] for x in (r, w, k, v, a, b))
            return recurrent.rwkv7_recurrence_step(r, w, k, v, a, b, cache["state"])[:, None]
        w, k, b = kept(w, run), kept(k, run), kept(b, run)
        o_BTHK, cache["state"] = recurrent.rwkv7_recurrence(r, w, k, v, a, b, cache["state"])
        return o_BTHK

    def _normed(self, o_BTHK: Tensor) -> Tensor:
        """A LayerNorm of each head."""
        wide = o_BTHK.to(self.wide)
        normed = F.layer_norm(wide, wide.shape[-1:], eps=NORM_EPS).flatten(-2)
        return (normed * self.norm.weight + self.norm.bias).to(o_BTHK.dtype)


class RWKV7ChannelMix(Body):
    """Squared ReLU of the token mixed with the one before it."""

    fields = frozenset(record.RWKV7ChannelMix.model_fields)

    def __init__(self, block: record.RWKV7ChannelMix, parts: Parts) -> None:
        super().__init__()
        self.device, self.dtype = parts.device, parts.dtype
        self.shift = nn.ParameterDict({"k": parts.uniform("shift.k", 0, 1)})
        self.up_proj = parts.linear("up_proj")
        self.down_proj = parts.linear("down_proj", to_residual=True)

    def new_cache(self, batch: int) -> StateCache:
        width = self.shift["k"].shape[0]
        return StateCache(shift=torch.zeros(batch, 1, width, device=self.device, dtype=self.dtype))

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        mixed = x_BTD + (shifted(x_BTD, run, cache) - x_BTD) * self.shift["k"]
        return self.down_proj(F.relu(self.up_proj(mixed)).square())
