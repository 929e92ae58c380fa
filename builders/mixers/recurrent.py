"""Shared parts of recurrent mixers: short convolution, linear recurrence, decay rates."""

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
from ..parameters import Parameters, inverse_softplus_of_exp

L2_EPS = 1e-6  # under the square root


class Recurrent(Body):
    """A body whose cache is a recurrent state and, with a short convolution, its last inputs.

    `state` and `tail` are their shapes without the batch.
    """

    def __init__(
        self, state: tuple[int, ...], tail: tuple[int, int] | None, params: Parameters
    ) -> None:
        super().__init__()
        self.state_shape, self.tail_shape = state, tail
        self.device, self.dtype, self.fp32_dtype = params.device, params.dtype, params.fp32_dtype

    def new_cache(self, batch: int) -> StateCache:
        state = torch.zeros(batch, *self.state_shape, device=self.device, dtype=self.fp32_dtype)
        named = {"state": state}
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
        """o_BTHV of the linear recurrence S_t = decay S_{t-1} + k v^T (or its delta rule), o = q S.

        The equations and the shapes of `decay` and `beta` are in kernels/recurrent/reference.py.
        """
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
        if run.valid_BT is not None:  # padding neither writes nor decays
            if decay is not None and decay.dim() == 1:
                decay = decay.expand(*v_BTHV.shape[:3])
            k_BTGK, v_BTHV = zero_padding(k_BTGK, run), zero_padding(v_BTHV, run)
            decay, beta = (None if x is None else zero_padding(x, run) for x in (decay, beta))
        o_BTHV, state = recurrent.linear_recurrence(
            q_BTGK, k_BTGK, v_BTHV, decay, beta, cache["state"], scale=scale
        )
        cache["state"] = state
        return o_BTHV


def dt_and_decay(raw_BTH: Tensor, A_log_H: Tensor, bias_H: Tensor) -> tuple[Tensor, Tensor]:
    """(dt, decay) with dt = softplus(raw + bias) and decay = -e^{A_log} dt."""
    dt_BTH = F.softplus(raw_BTH.to(bias_H.dtype) + bias_H)
    return dt_BTH, -A_log_H.exp() * dt_BTH


def one_token(run: Pass) -> bool:
    """Whether the pass has exactly one token per row."""
    return run.positions_BT.shape[1] == 1 and run.valid_BT is None


def zero_padding(x: Tensor, run: Pass) -> Tensor:
    """x with zeros where a token is padding."""
    if run.valid_BT is None:
        return x
    return x * run.valid_BT.view(*run.valid_BT.shape, *[1] * (x.dim() - 2)).to(x.dtype)


def l2_normalized(x: Tensor) -> Tensor:
    """Each head scaled to length one."""
    return rows.l2_norm(x, L2_EPS)


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over the last few tokens, then an activation."""

    def __init__(self, params: Parameters, *, name: str = "conv", activation: Any = "silu") -> None:
        super().__init__()
        self.activation = activation
        bound = params.weights[f"{name}.weight"].shape[1] ** -0.5
        self.weight = params.uniform(f"{name}.weight", -bound, bound)
        self.bias = None
        if params.has(f"{name}.bias"):
            self.bias = params.uniform(f"{name}.bias", -bound, bound)

    def forward(self, x_BTN: Tensor, run: Pass, cache: StateCache | None) -> Tensor:
        settings = {"activation": self.activation}
        if cache is None:
            return rows.short_conv(
                x_BTN, self.weight, self.bias, segment_ids=run.segment_ids_BT, **settings
            )
        if one_token(run):
            y_BN = rows.short_conv_step(
                x_BTN[:, 0], cache["tail"], self.weight, self.bias, **settings
            )
            return y_BN[:, None]
        y_BTN = rows.short_conv(x_BTN, self.weight, self.bias, tail_BWN=cache["tail"], **settings)
        cache["tail"] = last_inputs(x_BTN, cache["tail"], run.valid_BT)
        return y_BTN


def slow_dt_bias(params: Parameters, name: str) -> nn.Parameter:
    """A bias b with softplus(b) log-uniform in [0.001, 0.1), as Mamba initializes dt."""
    low, high = math.log(1e-3), math.log(1e-1)
    return params.uniform(name, low, high, fp32=True, then=inverse_softplus_of_exp)
