"""Reference of the operators in plain torch: the specification that all implementations match.

Arithmetic runs in float32, or in float64 where the input is float64; a result is rounded once, to
the dtype of the operator's first input. Autograd of these lines defines every gradient.
"""

# B batch, T tokens, H heads, D width, P pairs of rotated dimensions, N channels,
# W taps of a convolution (its tail_BWN holds one less), M rows, V vocabulary

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["silu", "gelu", "gelu_tanh", "oai"]
OAI_LIMIT = 7.0
OAI_SLOPE = 1.702
IGNORED = -100  # a target without loss, as in torch


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool = False) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 2019).

    `zero_centered`: the stored weight is the distance from one, the factor is 1 + weight.
    """
    wide = _wide(x)
    factor = 1 + weight.to(wide.dtype) if zero_centered else weight.to(wide.dtype)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd * factor).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, zero_centered: bool = False
) -> tuple[Tensor, Tensor]:
    """(normed, summed): summed = x + residual in their dtype, normed = rms_norm(summed)."""
    summed = x + residual
    # a view: the norm's gradients are summed before they meet that of `summed`, so that the bits
    # are those of `rms_norm` followed by a sum
    return rms_norm(summed.view_as(summed), weight, eps, zero_centered), summed


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    *,
    activation: Literal["silu", "sigmoid"] = "silu",
    gate_first: bool,
    groups: int = 1,
) -> Tensor:
    """rms_norm(x) * weight * act(gate), or with `gate_first` rms_norm(x * act(gate)) * weight.

    The first is gated DeltaNet's (and with a sigmoid KDA's), the second Mamba-2's. The norm is
    taken over each of `groups` equal parts of the last dimension; the weight spans all of them.
    """
    wide, gate = _wide(x), _wide(gate).to(_wide(x).dtype)
    act = gate.sigmoid() if activation == "sigmoid" else F.silu(gate)
    parts = (wide * act if gate_first else wide).unflatten(-1, (groups, -1))
    rstd = torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    normed = (parts * rstd).flatten(-2) * weight.to(wide.dtype)
    return (normed if gate_first else normed * act).to(x.dtype)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(sum(x^2) + eps) over the last dimension."""
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension."""
    wide = _wide(x)
    centered = wide - wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
    y = centered * rstd * weight.to(wide.dtype)
    return (y if bias is None else y + bias.to(wide.dtype)).to(x.dtype)


def glu(gate: Tensor, up: Tensor, activation: Activation, limit: float | None = None) -> Tensor:
    """act(gate) * up (Shazeer, 2020), with the activations

    silu        gate * sigmoid(gate)
    gelu        gate * Phi(gate), Phi the normal distribution; gelu_tanh: by its tanh
    oai         gate * sigmoid(1.702 gate), and up + 1 takes the place of up (gpt-oss)

    `limit` clamps first: gate from above, up from both sides (DeepSeek-V4). None is no clamp, for
    oai 7.
    """
    wide_gate, wide_up = _wide(gate), _wide(up)
    if limit is None and activation == "oai":
        limit = OAI_LIMIT
    if limit is not None:
        wide_gate, wide_up = wide_gate.clamp(max=limit), wide_up.clamp(-limit, limit)
    match activation:
        case "silu":
            y = F.silu(wide_gate) * wide_up
        case "gelu":
            y = F.gelu(wide_gate) * wide_up
        case "gelu_tanh":
            y = F.gelu(wide_gate, approximate="tanh") * wide_up
        case "oai":
            y = wide_gate * torch.sigmoid(OAI_SLOPE * wide_gate) * (wide_up + 1)
    return y.to(gate.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return glu(gate, up, "silu")


def relu2(up: Tensor) -> Tensor:
    """relu(up)^2 (So et al., 2021, arXiv 2109.08668)."""
    return F.relu(_wide(up)).square().to(up.dtype)


def rope(
    x_BTHD: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    rotated: int,
    interleaved: bool = False,
    last: bool = False,
) -> Tensor:
    """Pair (a, b) of each head becomes (a cos - b sin, b cos + a sin) (arXiv 2104.09864).

    The first `rotated` dimensions are rotated, with `last` the last ones; the others are copied.
    Pair p is (p, p + rotated / 2), or with `interleaved` (2 p, 2 p + 1). The tables,
    [T, rotated / 2] or per row [B, T, rotated / 2], have no gradient.
    """
    wide = _wide(x_BTHD)
    still = x_BTHD.shape[-1] - rotated
    before, turning, after = wide.split([still, rotated, 0] if last else [0, rotated, still], -1)
    a, b = turning.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else turning.chunk(2, -1)
    cos, sin = (table.to(wide.dtype).unsqueeze(-2) for table in (cos, sin))
    pairs = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return torch.cat([before, turned, after], -1).to(x_BTHD.dtype)


def short_conv(
    x_BTN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None = None,
    *,
    activation: Literal["silu"] | None,
    tail_BWN: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """y_t = act(bias + sum over j < W of weight[W - 1 - j] * x_{t - j}), each channel by itself.

    The inputs before the first token are `tail_BWN` [B, W - 1, N], of its segment, or zeros. An
    input of another segment than the token's own counts as zero.
    """
    wide, weight_NW = _wide(x_BTN), _wide(weight_NW).to(_wide(x_BTN).dtype)
    T, back = x_BTN.shape[1], weight_NW.shape[1] - 1
    tail = wide[:, :0] if tail_BWN is None else tail_BWN.to(wide.dtype)
    inputs = F.pad(torch.cat([tail, wide], 1), (0, 0, back - tail.shape[1], 0))
    y_BTN = torch.zeros_like(wide) if bias_N is None else bias_N.to(wide.dtype).expand_as(wide)
    for tap in range(back + 1):
        seen = inputs[:, tap : tap + T]
        if segment_ids is not None:
            owner = torch.cat([segment_ids[:, :1].expand(-1, back), segment_ids], 1)[
                :, tap : tap + T
            ]
            seen = seen.where((owner == segment_ids).unsqueeze(-1), 0)
        y_BTN = y_BTN + weight_NW[:, tap] * seen
    return (y_BTN if activation is None else F.silu(y_BTN)).to(x_BTN.dtype)


def short_conv_step(
    x_BN: Tensor,
    tail_BWN: Tensor,
    weight_NW: Tensor,
    bias_N: Tensor | None = None,
    *,
    activation: Literal["silu"] | None,
) -> Tensor:
    """One token of `short_conv`; shifts `tail_BWN` by it in place."""
    y_BTN = short_conv(x_BN[:, None], weight_NW, bias_N, activation=activation, tail_BWN=tail_BWN)
    tail_BWN.copy_(torch.cat([tail_BWN[:, 1:], x_BN[:, None]], 1))
    return y_BTN[:, 0]


def linear_cross_entropy(
    h: Tensor,
    weight_VD: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Mean of lse - logit_target + z_loss * lse^2 over all targets but -100; 0 if there are none.

    logits = scale * (h weight^T + bias), then softcap * tanh(logits / softcap); lse is their
    log-sum-exp, which z_loss keeps near zero (PaLM, arXiv 2204.02311). The result is not
    rounded to h's dtype.
    """
    logits = _wide(h) @ weight_VD.to(_wide(h).dtype).T
    logits = scale * (logits if bias is None else logits + bias.to(logits.dtype))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    counts = target != IGNORED
    lse = logits.logsumexp(-1)
    hit = logits.gather(-1, target.where(counts, 0).unsqueeze(-1)).squeeze(-1)
    loss = lse - hit + z_loss * lse.square()
    return loss.where(counts, 0).sum() / counts.sum().clamp(min=1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
