"""What recurrent mixers share: the short convolution in front, the recurrence, the rates of decay."""

# B batch, T tokens, W width of the convolution less one, N channels, G key heads, H value heads,
# K key width, V value width

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.recurrent import op as recurrent
from ...kernels.rows import op as rows
from ..body import Body, Pass
from ..caches import StateCache, last_inputs
from ..parts import Parts, inverse_softplus_of_exp

UNIT_EPS = 1e-6  # inside the root of a length


class Recurrent(Body):
    """A body whose memory is a state of constant size, and perhaps the tail of a convolution."""

    def __init__(self, state: tuple[int, ...], tail: tuple[int, int] | None, parts: Parts) -> None:
        super().__init__()
        self.state_shape, self.tail_shape = state, tail
        self.device, self.dtype, self.wide = parts.device, parts.dtype, parts.wide

    def new_cache(self, batch: int) -> StateCache:
        named = {
            "state": torch.zeros(batch, *self.state_shape, device=self.device, dtype=self.wide)
        }
        if self.tail_shape is not None:
            named["tail"] = torch.zeros(
                batch, *self.tail_shape, device=self.device, dtype=self.dtype
            )
        return StateCache(**named)

    def recur(
        self,
        q_BTGK: Tensor,
        k_BTGK: Tensor,
        v_BTHV: Tensor,
        decay: Tensor | None,
        beta: Tensor | None,
        run: Pass,
        cache: StateCache | None,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """o_BTHV of the linear recurrence, see kernels/recurrent/reference.py."""
        if cache is None:
            mixed = recurrent.linear_recurrence(
                q_BTGK, k_BTGK, v_BTHV, decay, beta, scale=scale, segment_ids=run.segment_ids_BT
            )
            return mixed[0]
        if one_token(run):
            by_token = decay is not None and decay.dim() > 1
            o_BHV = recurrent.linear_recurrence_step(
                q_BTGK[:, 0],
                k_BTGK[:, 0],
                v_BTHV[:, 0],
                decay[:, 0] if decay is not None and by_token else decay,
                None if beta is None else beta[:, 0],
                cache["state"],
                scale=scale,
            )
            return o_BHV[:, None]
        if run.valid_BT is not None:  # padding writes nothing and forgets nothing
            if decay is not None and decay.dim() == 1:
                decay = decay.expand(*v_BTHV.shape[:3])
            k_BTGK, v_BTHV = kept(k_BTGK, run), kept(v_BTHV, run)
            decay, beta = (None if x is None else kept(x, run) for x in (decay, beta))
        o_BTHV, state = recurrent.linear_recurrence(
            q_BTGK, k_BTGK, v_BTHV, decay, beta, cache["state"], scale=scale
        )
        cache["state"] = state
        return o_BTHV


def rates(raw_BTH: Tensor, A_log_H: Tensor, bias_H: Tensor) -> tuple[Tensor, Tensor]:
    """(dt, decay) with dt = softplus(raw + bias) and decay = -e^{A_log} dt."""
    dt_BTH = F.softplus(raw_BTH.to(bias_H.dtype) + bias_H)
    return dt_BTH, -A_log_H.exp() * dt_BTH


def one_token(run: Pass) -> bool:
    """Whether a pass reads one token of every row."""
    return run.positions_BT.shape[1] == 1 and run.valid_BT is None


def kept(x: Tensor, run: Pass) -> Tensor:
    """Zero where a token is padding."""
    if run.valid_BT is None:
        return x
    return x * run.valid_BT.view(*run.valid_BT.shape, *[1] * (x.dim() - 2)).to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """Each head at length one."""
    return rows.l2_norm(x, UNIT_EPS)


class ShortConvolution(nn.Module):
    """Each channel mixed with its own last few tokens, then SiLU unless told otherwise."""

    def __init__(self, parts: Parts, *, name: str = "conv", activation: Any = "silu") -> None:
        super().__init__()
        self.activation = activation
        bound = parts.weights[f"{name}.weight"].shape[1] ** -0.5
        self.weight = parts.uniform(f"{name}.weight", -bound, bound)
        self.bias = None
        if parts.has(f"{name}.bias"):
            self.bias = parts.uniform(f"{name}.bias", -bound, bound)

    def forward(self, x_BTN: Tensor, run: Pass, cache: StateCache | None) -> Tensor:
        taps = {"activation": self.activation}
        if cache is None:
            return rows.short_conv(
                x_BTN, self.weight, self.bias, segment_ids=run.segment_ids_BT, **taps
            )
        if one_token(run):
            y_BN = rows.short_conv_step(x_BTN[:, 0], cache["tail"], self.weight, self.bias, **taps)
            return y_BN[:, None]
        y_BTN = rows.short_conv(x_BTN, self.weight, self.bias, tail_BWN=cache["tail"], **taps)
        cache["tail"] = last_inputs(x_BTN, cache["tail"], run.valid_BT)
        return y_BTN


def started_slow(parts: Parts, name: str) -> nn.Parameter:
    """A bias under a softplus whose value starts log-uniform in 0.001 ... 0.1."""
    low, high = math.log(1e-3), math.log(1e-1)
    return parts.uniform(name, low, high, wide=True, then=inverse_softplus_of_exp)
