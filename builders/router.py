"""Routers of a mixture of experts: scores, selection by token or by expert, capacity."""

# B batch, T tokens, D model width, N tokens of all sequences, K experts per token, E experts,
# X experts that a token may select (zero experts included), O groups of experts,
# M pairs of token and expert

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..search_space.blocks.moe import MoE as Record
from .body import Pass, Unbuilt
from .caches import StateCache
from .layers import Projection, rms_normalized
from .parameters import Parameters

SPARSEMIXER_JITTER = 0.02  # logits within this fraction of the best stay candidates (2 epsilon)
SMALLEST_SCORE = 1e-12  # the gradient of a square root is unbounded at 0
HASH_MULTIPLIER = 2_654_435_761  # of multiplicative hashing, Knuth volume 3, section 6.4


class Router(Projection):
    """One logit per expert, scores of them, and the experts of each token.

    Weight [X, D]; with `router_scale` also Gemma 4's `input_scale` [D] and `expert_scale` [X].
    Computed in at least fp32, since near ties decide.
    """

    input_scale: nn.Parameter
    expert_scale: nn.Parameter

    def __init__(self, block: Record, params: Parameters) -> None:
        super().__init__(*params.projection("router", stack=False))
        self.block, self.norm_eps = block, params.norm.eps
        if block.router_scale:
            self.input_scale = params.constant("router.input_scale", 1.0)
            self.expert_scale = params.constant("router.expert_scale", 1.0)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """logits_NX."""
        fp32 = torch.promote_types(x_BTD.dtype, torch.float32)
        x = x_BTD.to(fp32)
        if self.block.router_scale:
            x = rms_normalized(x, self.norm_eps) * self.input_scale * x.shape[-1] ** -0.5
        bias = None if self.bias is None else self.bias.to(fp32)
        return F.linear(x, self.weight.to(fp32), bias).flatten(0, 1)

    def scores(self, logits_NX: Tensor) -> Tensor:
        """scores_NX in [0, inf), by softmax, sigmoid or sqrt(softplus)."""
        match self.block.router:
            case "sigmoid" | "sigmoid_bias":
                return logits_NX.sigmoid()
            case "sqrtsoftplus_bias" | "hash":
                return F.softplus(logits_NX).clamp(min=SMALLEST_SCORE).sqrt()
            case _:
                return logits_NX.softmax(-1)

    def select_experts(
        self, logits_NX: Tensor, scores_NX: Tensor, run: Pass, correction_X: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(chosen_NK, weight_NK): the experts of each token and their weights in the sum.

        `correction_X` is added to the scores for the selection alone (DeepSeek-V3).
        """
        block = self.block
        if block.router == "sparsemixer":
            return _sparsemixer(logits_NX, block.top_k)
        if block.router == "hash":
            chosen_NK = self.hashed_experts(run)
        else:
            selection_NX = scores_NX.detach()
            if correction_X is not None:
                selection_NX = selection_NX + correction_X
            if block.groups is not None:
                selection_NX = self._within_groups(selection_NX)
            chosen_NK = selection_NX.topk(block.top_k).indices
        weight_NK = scores_NX.gather(-1, chosen_NK)
        if block.norm_topk:
            total_N1 = weight_NK.sum(-1, keepdim=True)
            weight_NK = weight_NK / (total_N1 + torch.finfo(torch.float32).tiny)
        if block.router_scale:
            weight_NK = weight_NK * self.expert_scale[chosen_NK]
        return chosen_NK, weight_NK * block.scale

    def select_tokens(self, scores_NE: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """(expert_M, token_M, weight_M) where each expert takes its best tokens of each row.

        Expert choice (arXiv 2202.09368) with `capacity` * top_k / E of the tokens per expert. It
        looks ahead in the row.
        """
        block, T = self.block, len(scores_NE) // batch
        tokens = max(1, round((block.capacity or 1.0) * T * block.top_k / block.n_experts))
        weight_BEM, token_BEM = scores_NE.unflatten(0, (batch, T)).mT.topk(min(T, tokens), -1)
        row_B11 = torch.arange(batch, device=token_BEM.device)[:, None, None] * T
        expert_E1 = torch.arange(block.n_experts, device=token_BEM.device)[:, None]
        expert_M = expert_E1.expand_as(token_BEM).flatten()
        return expert_M, (token_BEM + row_B11).flatten(), weight_BEM.flatten() * block.scale

    def hashed_experts(self, run: Pass) -> Tensor:
        """chosen_NK: K consecutive experts from the hash of the token's id on.

        Raises Unbuilt where the pass has no token ids.
        """
        if run.tokens_BT is None:
            raise Unbuilt("a hash router needs the tokens' ids, this pass has embeddings alone")
        experts = self.block.n_experts + self.block.n_zero
        start_N = (run.tokens_BT.flatten() * HASH_MULTIPLIER % 2**32) * experts // 2**32
        choice_K = torch.arange(self.block.top_k, device=start_N.device)
        return (start_N[:, None] + choice_K) % experts

    def _within_groups(self, selection_NE: Tensor) -> Tensor:
        """-inf outside the best groups of experts.

        A group scores the sum of its two best (DeepSeek-V3), under a softmax its best one
        (DeepSeek-V2).
        """
        groups = self.block.groups
        assert groups is not None, "called where there are groups"
        grouped_NOE = selection_NE.unflatten(-1, (groups.n, -1))
        best = min(1 if self.block.router == "softmax" else 2, grouped_NOE.shape[-1])
        value_NO = grouped_NOE.topk(best, -1).values.sum(-1)
        top_NO = value_NO.topk(groups.top, -1).indices
        kept_NO = torch.zeros_like(value_NO, dtype=torch.bool).scatter_(-1, top_NO, True)
        return grouped_NOE.masked_fill(~kept_NO[..., None], -torch.inf).flatten(-2)


def within_capacity(
    block: Record, chosen_NK: Tensor, run: Pass, cache: StateCache | None
) -> Tensor:
    """kept_NK: whether an expert has room for a token.

    After t tokens of a document an expert takes at most ceil(capacity * top_k / X * t) of them,
    counted causally. The cache holds how many of each row an expert was offered.
    """
    if block.capacity is None:
        return torch.ones_like(chosen_NK, dtype=torch.bool)
    B, T = run.positions_BT.shape
    choices = block.n_experts + block.n_zero
    chosen_BTK = chosen_NK.unflatten(0, (B, T))
    offered_BTX = F.one_hot(chosen_BTK, choices).sum(2).float()
    if run.valid_BT is not None:
        offered_BTX = offered_BTX * run.valid_BT[..., None]
    earlier_BTX = offered_BTX.cumsum(1) - offered_BTX
    index_BT = torch.arange(T, device=chosen_NK.device)
    start_BT = (index_BT - run.positions_BT).clamp(min=0)  # of the document, in this pass
    load_BTX = earlier_BTX - earlier_BTX.gather(1, start_BT[..., None].expand_as(earlier_BTX))
    if cache is not None:
        load_BTX = load_BTX + cache["offered"][:, None]
        cache["offered"] = cache["offered"] + offered_BTX.sum(1)
    room_BT1 = block.capacity * block.top_k / choices * (run.positions_BT + 1)[..., None]
    full_BTX = load_BTX >= room_BT1.ceil()
    return ~full_BTX.gather(-1, chosen_BTK).flatten(0, 1)


def _sparsemixer(logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """SparseMixer (arXiv 2409.12136) as it routes at inference, without sampling in training.

    Each choice is the best expert not chosen before; its weight is the softmax over the logits
    within 2% of that best.
    """
    remaining_NE, chosen, weights = logits_NE, [], []
    for _ in range(top_k):
        best_N1, index_N1 = remaining_NE.detach().max(-1, keepdim=True)
        size_NE = torch.maximum(logits_NE.detach().abs(), best_N1)
        far_NE = (best_N1 - logits_NE.detach()) / size_NE > SPARSEMIXER_JITTER
        weight_NE = remaining_NE.masked_fill(far_NE, -torch.inf).softmax(-1)
        chosen.append(index_N1)
        weights.append(weight_NE.gather(-1, index_N1))
        remaining_NE = remaining_NE.scatter(-1, index_N1, -torch.inf)
    return torch.cat(chosen, -1), torch.cat(weights, -1)
