"""Residual connections beyond a plain sum: hyper-connections and attention residuals."""

# B batch, T tokens, S residual streams, N groups of layers, D model width

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..search_space.architecture import HyperConnections
from .body import Pass
from .layers import rms_normalized
from .parameters import Parameters

EPS = 1e-6  # added to mixing weights, so that none is zero
Inner = Callable[[Tensor], Tensor]


class StreamMixture(nn.Module):
    """Manifold-constrained hyper-connections of DeepSeek-V4 (arXiv 2512.24880).

    The sub-block reads h = sum_s pre_s x_s and x_s <- post_s y + sum_r mix_rs x_r, where pre, post
    and mix are a projection of all streams and mix is made doubly stochastic by Sinkhorn
    iterations. Equations and initial values: transformers, models/deepseek_v4.
    """

    def __init__(self, record: HyperConnections, params: Parameters) -> None:
        super().__init__()
        self.record, self.norm_eps = record, params.norm.eps
        self.mix = params.linear("mix")
        self.base = params.constant("base", 0.0)
        self.scale = params.constant("scale", 1.0)

    def forward(self, x_BTSD: Tensor, inner: Inner) -> Tensor:
        """x_BTSD after a sub-block `inner(h_BTD)`."""
        S, fp32 = self.record.streams, self.base.dtype
        flat = rms_normalized(x_BTSD.flatten(2).to(fp32), self.norm_eps)
        raw = F.linear(flat, self.mix.weight.to(fp32)).split([S, S, S * S], -1)
        base = self.base.split([S, S, S * S])
        pre, post, mix = (r * c + b for r, b, c in zip(raw, base, self.scale, strict=True))
        pre_BTS1 = (pre.sigmoid() + EPS)[..., None]
        post_BTS1 = (2 * post.sigmoid())[..., None]
        mix_BTSS = self._stochastic(mix.unflatten(-1, (S, S)).softmax(-1) + EPS)
        y_BTD = inner((pre_BTS1 * x_BTSD).sum(2).to(x_BTSD.dtype))
        kept_BTSD = mix_BTSS.mT.to(x_BTSD.dtype) @ x_BTSD
        return post_BTS1.to(x_BTSD.dtype) * y_BTD[:, :, None] + kept_BTSD

    def _stochastic(self, mix_BTSS: Tensor) -> Tensor:
        mix_BTSS = mix_BTSS / (mix_BTSS.sum(-2, keepdim=True) + EPS)
        for _ in range(self.record.sinkhorn_iters - 1):
            mix_BTSS = mix_BTSS / (mix_BTSS.sum(-1, keepdim=True) + EPS)
            mix_BTSS = mix_BTSS / (mix_BTSS.sum(-2, keepdim=True) + EPS)
        return mix_BTSS


class StreamHead(nn.Module):
    """A weighted sum of the streams, before the final norm."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        self.norm_eps = params.norm.eps
        self.mix = params.linear("mix")
        self.base, self.scale = params.constant("base", 0.0), params.constant("scale", 1.0)

    def forward(self, x_BTSD: Tensor) -> Tensor:
        fp32 = self.base.dtype
        flat = rms_normalized(x_BTSD.flatten(2).to(fp32), self.norm_eps)
        pre = (F.linear(flat, self.mix.weight.to(fp32)) * self.scale + self.base).sigmoid() + EPS
        return (pre[..., None] * x_BTSD).sum(2).to(x_BTSD.dtype)


class AttentionResidual(nn.Module):
    """Attention residuals (arXiv 2603.15031): softmax attention over sums of layer groups.

    x = sum_n softmax_n(norm(s_n) . w) s_n over the sums s_n of the closed groups and the open one,
    with a learned query w.
    """

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        self.residual_query = params.normal("residual_query")
        self.residual_norm = params.stack_norm("residual_norm")

    def forward(self, x_BTD: Tensor, run: Pass) -> Tensor:
        sums_NBTD = torch.stack([*run.group_sums, x_BTD])
        logits_NBT = self.residual_norm(sums_NBTD) @ self.residual_query
        fp32 = torch.promote_types(x_BTD.dtype, torch.float32)
        weight_NBT = logits_NBT.to(fp32).softmax(0).to(x_BTD.dtype)
        return torch.einsum("nbt,nbtd->btd", weight_NBT, sums_NBTD)


def close_group(x_BTD: Tensor, run: Pass) -> Tensor:
    """Append the sum of the open group to the closed ones and start a new group at zero."""
    run.group_sums = (*run.group_sums, x_BTD)
    return torch.zeros_like(x_BTD)
