"""A mixture of experts: who gets which token, and the experts themselves."""

# B batch, T tokens, D model width, N tokens of all sequences, K choices of a token, E experts,
# X experts that a token may choose (zero experts included), O groups of experts

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.experts import op as kernels
from ..kernels.experts.groups import Groups
from ..kernels.experts.reference import Activation
from ..search_space.blocks.moe import MoE as Record
from .body import Body, Pass, Unbuilt
from .caches import StateCache
from .feed_forward import MLP
from .parts import Linear, Parts, normed_without_weight

# Activations that the whole of a mixture has a kernel for.
FUSED: dict[str, Activation] = {"swiglu": "silu", "geglu_tanh": "gelu_tanh", "relu2": "relu2"}
MIXER_REACH = 0.02  # of SparseMixer: logits within this share of the best stay candidates
SMALLEST_SCORE = 1e-12  # below it the slope of a square root has no end
HASH_PRIME = 2_654_435_761  # of multiplicative hashing, Knuth volume 3 section 6.4


class Router(Linear):
    """The projection to a logit for each expert, and Gemma 4's scales where a block has them."""

    input_scale: nn.Parameter
    expert_scale: nn.Parameter


class MoE(Body):
    """Tokens sorted by expert, one product an expert and matrix, weighted sum back in place.

    After a forward, `load_E` holds the tokens each expert got and `balance_loss` the loss of
    Switch Transformers (arXiv 2101.03961, equation 4, over all choices): 1 when balanced.
    """

    fields = frozenset(Record.model_fields)
    load_E: Tensor
    balance_loss: Tensor
    correction_bias: Tensor

    def __init__(self, block: Record, parts: Parts) -> None:
        super().__init__()
        self.block, self.norm_eps = block, parts.norm.eps
        self.device = parts.device
        self.router = Router(*parts.matrices("router", stack=False))
        if block.router_scale:
            self.router.input_scale = parts.filled("router.input_scale", 1.0)
            self.router.expert_scale = parts.filled("router.expert_scale", 1.0)
        layers = [
            MLP(block.activation, block.limit, parts.stacked, p) for p in block.expert_prefixes
        ]
        self.experts: MLP | nn.ModuleList = layers[0]
        if block.expert_layers > 1:
            self.experts = nn.ModuleList(layers)
        self.fused = (
            block.activation in FUSED
            and block.expert_layers == 1
            and not (block.expert_bias or block.scale_input)
            and parts.formats.get("experts.up_proj.weight", "bf16") == "bf16"
        )
        self.shared = None
        if block.n_shared:
            self.shared = MLP(block.activation, block.limit, parts.linear, "shared.")
        self.shared_gate = parts.linear("shared_gate") if block.shared_gate else None
        if block.latent:
            self.latent_in_proj = parts.linear("latent_in_proj")
            self.latent_norm = parts.rms_norm("latent_norm") if block.latent_norm else nn.Identity()
            self.latent_out_proj = parts.linear("latent_out_proj", to_residual=True)
        if block.router in ("sigmoid_bias", "sqrtsoftplus_bias"):
            # fp32 whatever the model has: a step of 0.001 is lost on a bfloat16 above 0.25
            choices = block.n_experts + block.n_zero
            self.register_buffer("correction_bias", parts.buffer(choices, dtype=torch.float32))

    def new_cache(self, batch: int) -> StateCache | None:
        """With a capacity: how many tokens of each row every expert has had."""
        if self.block.router == "expert_choice":
            raise Unbuilt(
                "experts that choose tokens look ahead: the model trains, it does not decode"
            )
        if self.block.capacity is None:
            return None
        experts = self.block.n_experts + self.block.n_zero
        return StateCache(had=torch.zeros(batch, experts, device=self.device))

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        seen_BTD = run.left.get(RAW, x_BTD) if self.block.router_scale else x_BTD
        logits_NX = self._logits(seen_BTD).flatten(0, 1)
        x_ND = x_BTD.flatten(0, 1)
        inner_ND = self.latent_norm(self.latent_in_proj(x_ND)) if self.block.latent else x_ND
        if self.block.router == "expert_choice":
            y_ND = self._by_experts(inner_ND, self._scores(logits_NX), len(x_BTD))
        else:
            y_ND = self._by_tokens(inner_ND, logits_NX, run, cache)
        if self.block.latent:
            y_ND = self.latent_out_proj(y_ND)
        if self.shared is not None:
            shared_ND = self.shared.feed(x_ND)
            if self.shared_gate is not None:
                shared_ND = shared_ND * self.shared_gate(x_ND).sigmoid()
            y_ND = y_ND + shared_ND
        return y_ND.view_as(x_BTD)

    def _by_tokens(
        self,
        inner_ND: Tensor,
        logits_NX: Tensor,
        run: Pass,
        cache: StateCache | None,
    ) -> Tensor:
        """The sum of what the chosen experts make of each token."""
        scores_NX = self._scores(logits_NX)
        chosen_NK, share_NK = self._tokens_choose(logits_NX, scores_NX, run)
        self._account(chosen_NK, scores_NX, run)
        kept_NK = self._within_capacity(chosen_NK, run, cache)
        real_NK = kept_NK & (chosen_NK < self.block.n_experts)
        expert_NK = torch.where(real_NK, chosen_NK, -1)
        if isinstance(self.experts, MLP) and self.fused:
            own = self.experts
            y_ND = kernels.mixture(
                inner_ND,
                expert_NK,
                share_NK,
                own.gate_proj.weight if hasattr(own, "gate_proj") else None,
                own.up_proj.weight,
                own.down_proj.weight,
                FUSED[self.block.activation],
                self.block.limit,
            )
        else:
            token_M = torch.arange(expert_NK.numel(), device=expert_NK.device) // self.block.top_k
            mixed_MD = self._routed(inner_ND, token_M, expert_NK.flatten(), share_NK.flatten())
            y_ND = mixed_MD.unflatten(0, chosen_NK.shape).sum(1)
        if self.block.n_zero:
            back_NK = share_NK * (kept_NK & ~real_NK)
            y_ND = y_ND + back_NK.sum(-1, keepdim=True).to(inner_ND.dtype) * inner_ND
        return y_ND

    def _by_experts(self, inner_ND: Tensor, scores_NE: Tensor, batch: int) -> Tensor:
        """The same where every expert takes its best tokens of a text."""
        block, T = self.block, len(inner_ND) // batch
        each = min(T, max(1, round((block.capacity or 1.0) * T * block.top_k / block.n_experts)))
        share_BEM, token_BEM = scores_NE.unflatten(0, (batch, T)).mT.topk(each, -1)
        row_B11 = torch.arange(batch, device=token_BEM.device)[:, None, None] * T
        expert_E1 = torch.arange(block.n_experts, device=token_BEM.device)[:, None]
        expert_M, token_M = (
            expert_E1.expand_as(token_BEM).flatten(),
            (token_BEM + row_B11).flatten(),
        )
        self.load_E = expert_M.bincount(minlength=block.n_experts)
        self.balance_loss = scores_NE.new_ones(())  # balanced by construction
        mixed_MD = self._routed(inner_ND, token_M, expert_M, share_BEM.flatten() * block.scale)
        return torch.zeros_like(inner_ND).index_add(0, token_M, mixed_MD)

    def _logits(self, x_BTD: Tensor) -> Tensor:
        """fp32 or wider, whatever the model has: near ties decide."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        x = x_BTD.to(wide)
        if self.block.router_scale:
            x = (
                normed_without_weight(x, self.norm_eps)
                * self.router.input_scale
                * x.shape[-1] ** -0.5
            )
        bias = None if self.router.bias is None else self.router.bias.to(wide)
        return F.linear(x, self.router.weight.to(wide), bias)

    def _scores(self, logits_NX: Tensor) -> Tensor:
        match self.block.router:
            case "sigmoid" | "sigmoid_bias":
                return logits_NX.sigmoid()
            case "sqrtsoftplus_bias" | "hash":
                return F.softplus(logits_NX).clamp(min=SMALLEST_SCORE).sqrt()
            case _:
                return logits_NX.softmax(-1)

    def _tokens_choose(
        self, logits_NX: Tensor, scores_NX: Tensor, run: Pass
    ) -> tuple[Tensor, Tensor]:
        """chosen_NK, and the share of each choice in the sum."""
        block = self.block
        if block.router == "sparsemixer":
            return _sparsemixer(logits_NX, block.top_k)
        if block.router == "hash":
            chosen_NK = self._hashed(run)
        else:
            wanted_NX = scores_NX.detach()
            if block.router in ("sigmoid_bias", "sqrtsoftplus_bias"):
                wanted_NX = wanted_NX + self.correction_bias
            if block.groups is not None:
                wanted_NX = self._within_groups(wanted_NX)
            chosen_NK = wanted_NX.topk(block.top_k).indices
        share_NK = scores_NX.gather(-1, chosen_NK)
        if block.norm_topk:
            share_NK = share_NK / (share_NK.sum(-1, keepdim=True) + torch.finfo(torch.float32).tiny)
        if block.router_scale:
            share_NK = share_NK * self.router.expert_scale[chosen_NK]
        return chosen_NK, share_NK * block.scale

    def _within_groups(self, wanted_NE: Tensor) -> Tensor:
        """Minus infinity outside the best groups: by their best two scores, by the best one where a
        softmax scores (DeepSeek-V3 and V2)."""
        groups = self.block.groups
        assert groups is not None, "asked only where there are groups"
        of_group = wanted_NE.unflatten(-1, (groups.n, -1))
        best = min(1 if self.block.router == "softmax" else 2, of_group.shape[-1])
        value_NO = of_group.topk(best, -1).values.sum(-1)
        top_NO = value_NO.topk(groups.top, -1).indices
        kept_NO = torch.zeros_like(value_NO, dtype=torch.bool).scatter_(-1, top_NO, True)
        return of_group.masked_fill(~kept_NO[..., None], -torch.inf).flatten(-2)

    def _hashed(self, run: Pass) -> Tensor:
        """K neighboring experts, from where the token's id falls."""
        if run.tokens_BT is None:
            raise Unbuilt("a hash router needs the tokens' ids, this pass has embeddings alone")
        experts = self.block.n_experts + self.block.n_zero
        start_N = (run.tokens_BT.flatten() * HASH_PRIME % 2**32) * experts // 2**32
        choice_K = torch.arange(self.block.top_k, device=start_N.device)
        return (start_N[:, None] + choice_K) % experts

    def _account(self, chosen_NK: Tensor, scores_NX: Tensor, run: Pass) -> None:
        choices = scores_NX.shape[-1]
        if run.valid_BT is not None:
            chosen_NK, scores_NX = (x[run.valid_BT.flatten()] for x in (chosen_NK, scores_NX))
        self.load_E = chosen_NK.flatten().bincount(minlength=choices)
        fraction_E = self.load_E.to(scores_NX.dtype) / max(1, chosen_NK.numel())
        self.balance_loss = choices * fraction_E @ scores_NX.mean(0)

    def _within_capacity(self, chosen_NK: Tensor, run: Pass, cache: StateCache | None) -> Tensor:
        """Whether an expert still takes a token: by what it had of the same text before."""
        block = self.block
        if block.capacity is None:
            return torch.ones_like(chosen_NK, dtype=torch.bool)
        B, T = run.positions_BT.shape
        choices = block.n_experts + block.n_zero
        chosen_BTK = chosen_NK.unflatten(0, (B, T))
        taken_BTX = F.one_hot(chosen_BTK, choices).sum(2).float()
        if run.valid_BT is not None:
            taken_BTX = taken_BTX * run.valid_BT[..., None]
        before_BTX = taken_BTX.cumsum(1) - taken_BTX
        index_BT = torch.arange(T, device=chosen_NK.device)
        start_BT = (index_BT - run.positions_BT).clamp(min=0)  # of the document, in this pass
        had_BTX = before_BTX - before_BTX.gather(1, start_BT[..., None].expand_as(before_BTX))
        if cache is not None:
            had_BTX = had_BTX + cache["had"][:, None]
            cache["had"] = cache["had"] + taken_BTX.sum(1)
        room_BT1 = block.capacity * block.top_k / choices * (run.positions_BT + 1)[..., None]
        full_BTX = had_BTX >= room_BT1.ceil()
        return ~full_BTX.gather(-1, chosen_BTK).flatten(0, 1)

    def _routed(self, x_ND: Tensor, token_M: Tensor, expert_M: Tensor, share_M: Tensor) -> Tensor:
        """mixed_MD: what each expert makes of each of its tokens, by the share of the choice; zero
        where the expert is below 0."""
        groups = kernels.group(expert_M, self.block.n_experts)
        rows_MD = x_ND[token_M[groups.order_M]]
        share_M1 = torch.where(expert_M < 0, 0, share_M)[groups.order_M, None].to(x_ND.dtype)
        if self.block.scale_input:
            mixed_MD = self._experts(rows_MD * share_M1, groups)
        else:
            mixed_MD = self._experts(rows_MD, groups) * share_M1
        return mixed_MD[groups.order_M.argsort()]

    def _experts(self, rows_MD: Tensor, groups: Groups) -> Tensor:
        if isinstance(self.experts, MLP):
            return self.experts.feed(rows_MD, groups)
        *inner, last = cast("Sequence[MLP]", self.experts)
        for layer in inner:
            rows_MD = rows_MD + layer.feed(rows_MD, groups)
        return last.feed(rows_MD, groups)

    def rebalance(self, rate: float) -> None:
        """Move the correction bias of each expert by `rate` towards an equal load (DeepSeek-V3)."""
        load_E = self.load_E.float()
        self.correction_bias += rate * torch.sign(load_E.mean() - load_E)

    def jain_index(self) -> float:
        """(sum of loads)^2 / (E sum of squares): 1 balanced, 1 / E all on one (Jain, 1984)."""
        load_E = self.load_E.double()
        return (load_E.sum().square() / (len(load_E) * load_E.square().sum())).item()


RAW = "stream before the branch's norm"  # what Gemma 4's router reads; a parallel group leaves it


def _sparsemixer(logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """arXiv 2409.12136 as it routes at inference; sampling during training is left out.

    Each choice is the best expert not chosen before; its share is the softmax over the logits that
    come within 2% of that best.
    """
    left_NE, chosen, shares = logits_NE, [], []
    for _ in range(top_k):
        best_N1, index_N1 = left_NE.detach().max(-1, keepdim=True)
        size_NE = torch.maximum(logits_NE.detach().abs(), best_N1)
        far_NE = (best_N1 - logits_NE.detach()) / size_NE > MIXER_REACH
        share_NE = left_NE.masked_fill(far_NE, -torch.inf).softmax(-1)
        chosen.append(index_N1)
        shares.append(share_NE.gather(-1, index_N1))
        left_NE = left_NE.scatter(-1, index_N1, -torch.inf)
    return torch.cat(chosen, -1), torch.cat(shares, -1)
