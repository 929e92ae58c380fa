"""RWKV-7: time mix with a generalized delta rule, and channel mix."""

# B batch, T tokens, D model width, H heads, K head width, N = H K

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...search_space.blocks import rwkv7 as record
from ..body import Body, Pass
from ..caches import StateCache, last_inputs
from ..parameters import Parameters
from .recurrent import Recurrent, l2_normalized, one_token, zero_padding

STRONGEST_DECAY = -0.6065306597126334  # -e^(-1/2), the least log decay of a channel
NORM_EPS = 64e-5  # 1e-5 times the head width of 64, as in the reference code


def token_shift(x_BTD: Tensor, run: Pass, cache: StateCache | None) -> Tensor:
    """The input of the previous token; zeros before the first of a document."""
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
    """The time mix of arXiv 2503.14456, section 3; names as in its reference code.

    S_t = (diag(w_t) - (a_t kappa_t) kappa_t^T) S_{t-1} + k_t v_t^T and o_t = S_t^T r_t per head,
    with kappa of length one and S [K, V]. Every input is mixed with that of the previous token
    (`shift`), the values of later blocks with those of the first. A norm per head, a bonus
    (r . k) v and a gate follow.
    """

    fields = frozenset(record.RWKV7.model_fields)

    def __init__(self, block: record.RWKV7, params: Parameters) -> None:
        super().__init__((block.heads, block.head_dim, block.head_dim), None, params)
        self.block, self.first = block, params.first
        self.shift = nn.ParameterDict({of: params.uniform(f"shift.{of}", 0, 1) for of in "rwkvag"})
        self.r_proj, self.k_proj, self.v_proj = (params.linear(f"{of}_proj") for of in "rkv")
        for name in ["decay", "a"] if params.first else ["decay", "a", "v"]:
            self.add_module(f"{name}_a_proj", params.linear(f"{name}_a_proj"))
            self.add_module(f"{name}_b_proj", params.linear(f"{name}_b_proj"))
        self.gate_a_proj, self.gate_b_proj = (
            params.linear("gate_a_proj"),
            params.linear("gate_b_proj"),
        )
        self.k_k, self.k_a = params.constant("k_k", 0.85), params.constant("k_a", 1.0)
        self.r_k = params.constant("r_k", 0.0)
        self.norm = params.layer_norm("norm", NORM_EPS)
        self.out_proj = params.linear("out_proj", to_residual=True)
        self.width = self.shift["r"].shape[0]

    def new_cache(self, batch: int) -> StateCache:
        cache = super().new_cache(batch)
        cache["shift"] = torch.zeros(batch, 1, self.width, device=self.device, dtype=self.dtype)
        return cache

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        heads = (self.block.heads, -1)
        change = token_shift(x_BTD, run, cache) - x_BTD
        xr, xw, xk, xv, xa, xg = (x_BTD + change * self.shift[of] for of in "rwkvag")
        r_BTN, k_BTN, v_BTN = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        decay_BTN = (
            STRONGEST_DECAY * self._offset("decay", xw, torch.tanh).to(self.fp32_dtype).sigmoid()
        )
        if self.first:
            run.first_values_BTN = v_BTN
        else:
            assert run.first_values_BTN is not None, "left by the first RWKV-7 block"
            v_BTN = v_BTN + (run.first_values_BTN - v_BTN) * self._offset("v", xv).sigmoid()
        rate_BTN = self._offset("a", xa).sigmoid()
        gate_BTN = self.gate_b_proj(self.gate_a_proj(xg).sigmoid())
        removed_BTHK = l2_normalized((k_BTN * self.k_k.to(k_BTN.dtype)).unflatten(-1, heads))
        k_BTN = k_BTN * (1 + (rate_BTN - 1) * self.k_a.to(k_BTN.dtype))
        r, w, k, v, rate = (
            x.unflatten(-1, heads) for x in (r_BTN, decay_BTN, k_BTN, v_BTN, rate_BTN)
        )
        o_BTHK = self._recur(r, w, k, v, -removed_BTHK, removed_BTHK * rate, run, cache)
        o_BTN = self._normed(o_BTHK)
        bonus_BTHK = (r * k * self.r_k.unflatten(0, heads).to(r.dtype)).sum(-1, keepdim=True) * v
        return self.out_proj((o_BTN + bonus_BTHK.flatten(-2)) * gate_BTN)

    def _offset(self, name: str, x: Tensor, inside: Any = None) -> Tensor:
        """A low-rank projection b(inside(a(x))), with a bias."""
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
        w, k, b = zero_padding(w, run), zero_padding(k, run), zero_padding(b, run)
        o_BTHK, cache["state"] = recurrent.rwkv7_recurrence(r, w, k, v, a, b, cache["state"])
        return o_BTHK

    def _normed(self, o_BTHK: Tensor) -> Tensor:
        """LayerNorm of each head."""
        fp32 = o_BTHK.to(self.fp32_dtype)
        normed = F.layer_norm(fp32, fp32.shape[-1:], eps=NORM_EPS).flatten(-2)
        return (normed * self.norm.weight + self.norm.bias).to(o_BTHK.dtype)


class RWKV7ChannelMix(Body):
    """y = W_down relu(W_up (x_t + (x_{t-1} - x_t) mu))^2 (arXiv 2503.14456, section 3)."""

    fields = frozenset(record.RWKV7ChannelMix.model_fields)

    def __init__(self, block: record.RWKV7ChannelMix, params: Parameters) -> None:
        super().__init__()
        self.device, self.dtype = params.device, params.dtype
        self.shift = nn.ParameterDict({"k": params.uniform("shift.k", 0, 1)})
        self.up_proj = params.linear("up_proj")
        self.down_proj = params.linear("down_proj", to_residual=True)

    def new_cache(self, batch: int) -> StateCache:
        width = self.shift["k"].shape[0]
        return StateCache(shift=torch.zeros(batch, 1, width, device=self.device, dtype=self.dtype))

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        mixed = x_BTD + (token_shift(x_BTD, run, cache) - x_BTD) * self.shift["k"]
        return self.down_proj(F.relu(self.up_proj(mixed)).square())
