"""Mixture of experts: routed, shared and zero experts."""

# B batch, T tokens, D model width, N tokens of all sequences, K experts per token, E experts,
# X experts that a token may select (zero experts included), M pairs of token and expert

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..search_space.blocks.moe import MoE as Record
from .balance import CORRECTED_ROUTERS, correction_step, load_and_loss
from .body import Body, Pass, Unbuilt
from .caches import StateCache
from .experts import expert_outputs, fused_sum, has_fused_kernel
from .feed_forward import MLP
from .parameters import Parameters
from .router import Router, within_capacity


class MoE(Body):
    """y_t = sum over the selected experts e of weight_te E_e(x_t), plus shared experts.

    A zero expert returns its input (LongCat-Flash, arXiv 2509.01322); with `latent` the routed
    experts work on a projection of x (Nemotron 3). After a forward, `load_E` holds the number of
    tokens per expert and `balance_loss` the auxiliary loss, see balance.py.
    """

    fields = frozenset(Record.model_fields)
    load_E: Tensor
    balance_loss: Tensor
    correction_bias: Tensor

    def __init__(self, block: Record, params: Parameters) -> None:
        super().__init__()
        self.block, self.device = block, params.device
        self.router = Router(block, params)
        layers = [
            MLP(block.activation, block.limit, params.stacked, p) for p in block.expert_prefixes
        ]
        self.experts: MLP | nn.ModuleList = layers[0]
        if block.expert_layers > 1:
            self.experts = nn.ModuleList(layers)
        self.fused = has_fused_kernel(block, params.formats.get("experts.up_proj.weight", "bf16"))
        self.shared = None
        if block.n_shared:
            self.shared = MLP(block.activation, block.limit, params.linear, "shared.")
        self.shared_gate = params.linear("shared_gate") if block.shared_gate else None
        if block.latent:
            self.latent_in_proj = params.linear("latent_in_proj")
            latent_norm = params.rms_norm("latent_norm") if block.latent_norm else nn.Identity()
            self.latent_norm = latent_norm
            self.latent_out_proj = params.linear("latent_out_proj", to_residual=True)
        if block.router in CORRECTED_ROUTERS:
            # always fp32: a step of 0.001 is lost on a bfloat16 above 0.25
            choices = block.n_experts + block.n_zero
            self.register_buffer("correction_bias", params.buffer(choices, dtype=torch.float32))

    def new_cache(self, batch: int) -> StateCache | None:
        """With a capacity: the tokens of each row that every expert was offered, else None.

        Raises Unbuilt for expert choice, which looks ahead.
        """
        if self.block.router == "expert_choice":
            raise Unbuilt(
                "experts that choose tokens look ahead: the model trains, it does not decode"
            )
        if self.block.capacity is None:
            return None
        experts = self.block.n_experts + self.block.n_zero
        return StateCache(offered=torch.zeros(batch, experts, device=self.device))

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        router_input_BTD = x_BTD
        if self.block.router_scale and run.unnormed_BTD is not None:
            router_input_BTD = run.unnormed_BTD
        logits_NX = self.router.logits(router_input_BTD)
        x_ND = x_BTD.flatten(0, 1)
        inner_ND = self.latent_norm(self.latent_in_proj(x_ND)) if self.block.latent else x_ND
        if self.block.router == "expert_choice":
            y_ND = self._expert_choice(inner_ND, logits_NX, len(x_BTD))
        else:
            y_ND = self._token_choice(inner_ND, logits_NX, run, cache)
        if self.block.latent:
            y_ND = self.latent_out_proj(y_ND)
        if self.shared is not None:
            shared_ND = self.shared.feed(x_ND)
            if self.shared_gate is not None:
                shared_ND = shared_ND * self.shared_gate(x_ND).sigmoid()
            y_ND = y_ND + shared_ND
        return y_ND.view_as(x_BTD)

    def _token_choice(
        self, inner_ND: Tensor, logits_NX: Tensor, run: Pass, cache: StateCache | None
    ) -> Tensor:
        block = self.block
        scores_NX = self.router.scores(logits_NX)
        correction = self.correction_bias if block.router in CORRECTED_ROUTERS else None
        chosen_NK, weight_NK = self.router.select_experts(logits_NX, scores_NX, run, correction)
        valid_N = None if run.valid_BT is None else run.valid_BT.flatten()
        self.load_E, self.balance_loss = load_and_loss(chosen_NK, scores_NX, valid_N)
        kept_NK = within_capacity(block, chosen_NK, run, cache)
        real_NK = kept_NK & (chosen_NK < block.n_experts)
        expert_NK = torch.where(real_NK, chosen_NK, -1)
        if isinstance(self.experts, MLP) and self.fused:
            y_ND = fused_sum(block, self.experts, inner_ND, expert_NK, weight_NK)
        else:
            token_M = torch.arange(expert_NK.numel(), device=expert_NK.device) // block.top_k
            pairs = token_M, expert_NK.flatten(), weight_NK.flatten()
            y_MD = expert_outputs(block, self._expert_layers, inner_ND, *pairs)
            y_ND = y_MD.unflatten(0, chosen_NK.shape).sum(1)
        if block.n_zero:
            zero_NK = weight_NK * (kept_NK & ~real_NK)
            y_ND = y_ND + zero_NK.sum(-1, keepdim=True).to(inner_ND.dtype) * inner_ND
        return y_ND

    def _expert_choice(self, inner_ND: Tensor, logits_NE: Tensor, batch: int) -> Tensor:
        scores_NE = self.router.scores(logits_NE)
        expert_M, token_M, weight_M = self.router.select_tokens(scores_NE, batch)
        self.load_E = expert_M.bincount(minlength=self.block.n_experts)
        self.balance_loss = scores_NE.new_ones(())  # balanced by construction
        layers = self._expert_layers
        y_MD = expert_outputs(self.block, layers, inner_ND, token_M, expert_M, weight_M)
        return torch.zeros_like(inner_ND).index_add(0, token_M, y_MD)

    @property
    def _expert_layers(self) -> Sequence[MLP]:
        if isinstance(self.experts, MLP):
            return (self.experts,)
        return cast("Sequence[MLP]", self.experts)

    def rebalance(self, rate: float) -> None:
        """Move the correction bias by `rate` towards an equal load of the last forward."""
        self.correction_bias += correction_step(self.load_E, rate)
