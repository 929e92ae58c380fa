"""How a sub-block reads and writes the residual stream, where that is more than one sum."""

# B batch, T tokens, S residual streams, N groups of layers, D model width

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..search_space.architecture import HyperConnections
from .body import Pass
from .parts import Parts, normed_without_weight

EPS = 1e-6  # keeps the mixtures of streams away from zero
GROUPS = "groups of layers so far"  # what attention residuals look back at
Inside = Callable[[Tensor], Tensor]


class StreamMixture(nn.Module):
    """DeepSeek-V4's hyper-connections: one projection of all streams says how they are mixed.

    h = sum of pre_s x_s goes in; x_s <- post_s y + sum of mix_{rs} x_r, with mix made doubly
    stochastic (Sinkhorn) so that depth neither grows nor shrinks the streams. Equations and initial
    scale: transformers, models/deepseek_v4. Each stream starts as the plain residual stream would.
    """

    def __init__(self, record: HyperConnections, parts: Parts) -> None:
        super().__init__()
        self.record, self.norm_eps = record, parts.norm.eps
        self.mix = parts.linear("mix")
        self.base = parts.filled("base", 0.0)
        self.scale = parts.filled("scale", 1.0)

    def forward(self, x_BTSD: Tensor, inside: Inside) -> Tensor:
        S, wide = self.record.streams, self.base.dtype
        flat = normed_without_weight(x_BTSD.flatten(2).to(wide), self.norm_eps)
        raw = F.linear(flat, self.mix.weight.to(wide)).split([S, S, S * S], -1)
        base = self.base.split([S, S, S * S])
        pre, post, mix = (r * c + b for r, b, c in zip(raw, base, self.scale, strict=True))
        pre_BTS1 = (pre.sigmoid() + EPS)[..., None]
        post_BTS1 = (2 * post.sigmoid())[..., None]
        mix_BTSS = self._stochastic(mix.unflatten(-1, (S, S)).softmax(-1) + EPS)
        y_BTD = inside((pre_BTS1 * x_BTSD).sum(2).to(x_BTSD.dtype))
        kept_BTSD = mix_BTSS.mT.to(x_BTSD.dtype) @ x_BTSD
        return post_BTS1.to(x_BTSD.dtype) * y_BTD[:, :, None] + kept_BTSD

    def _stochastic(self, mix_BTSS: Tensor) -> Tensor:
        mix_BTSS = mix_BTSS / (mix_BTSS.sum(-2, keepdim=True) + EPS)
        for _ in range(self.record.sinkhorn_iters - 1):
            mix_BTSS = mix_BTSS / (mix_BTSS.sum(-1, keepdim=True) + EPS)
            mix_BTSS = mix_BTSS / (mix_BTSS.sum(-2, keepdim=True) + EPS)
        return mix_BTSS


class StreamHead(nn.Module):
    """One hidden state of all streams, in front of the last norm."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.norm_eps = parts.norm.eps
        self.mix = parts.linear("mix")
        self.base, self.scale = parts.filled("base", 0.0), parts.filled("scale", 1.0)

    def forward(self, x_BTSD: Tensor) -> Tensor:
        wide = self.base.dtype
        flat = normed_without_weight(x_BTSD.flatten(2).to(wide), self.norm_eps)
        pre = (F.linear(flat, self.mix.weight.to(wide)) * self.scale + self.base).sigmoid() + EPS
        return (pre[..., None] * x_BTSD).sum(2).to(x_BTSD.dtype)


class LookBack(nn.Module):
    """Attention residuals (arXiv 2603.15031): softmax attention over the sums of earlier groups.

    A learned query meets the normed sum of each group of layers and of the present one; what it
    gives is their weighted mean, unnormed.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.residual_query = parts.normal("residual_query")
        self.residual_norm = parts.stack_norm("residual_norm")

    def forward(self, x_BTD: Tensor, run: Pass) -> Tensor:
        sums_NBTD = torch.stack([*run.left[GROUPS], x_BTD])
        logits_NBT = self.residual_norm(sums_NBTD) @ self.residual_query
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        share_NBT = logits_NBT.to(wide).softmax(0).to(x_BTD.dtype)
        return torch.einsum("nbt,nbtd->btd", share_NBT, sums_NBTD)


def close_group(x_BTD: Tensor, run: Pass) -> Tensor:
    """Set the sum so far beside the earlier ones; the present group begins with nothing."""
    run.left[GROUPS] = [*run.left.get(GROUPS, []), x_BTD]
    return torch.zeros_like(x_BTD)
