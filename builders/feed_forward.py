"""Feed-forward bodies: dense, and a mixture of experts with its routing."""

# B batch, T tokens, D model width, N tokens of all sequences, K choices of a token, E experts

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.rows import op as rows
from ..search_space.blocks import feed_forward as record
from ..search_space.blocks.moe import Moe as MoeRecord
from .body import Body
from .parts import Parts


class Mlp(Body):
    """Up, activation, down. What follows x goes on to the projections: the rows of each expert."""

    def __init__(
        self, activation: record.Activation, make: Callable[..., nn.Module], prefix: str = ""
    ) -> None:
        super().__init__()
        self.activation = activation
        if activation != "relu2":
            self.gate_proj = make(f"{prefix}gate_proj")
        self.up_proj = make(f"{prefix}up_proj")
        self.down_proj = make(f"{prefix}down_proj", to_residual=True)

    def forward(self, x: Tensor, *rows_of_expert: list[int]) -> Tensor:
        up = self.up_proj(x, *rows_of_expert)
        if self.activation == "relu2":
            return self.down_proj(F.relu(up).square(), *rows_of_expert)
        gate = self.gate_proj(x, *rows_of_expert)
        gated = rows.swiglu(gate, up) if self.activation == "swiglu" else F.gelu(gate) * up
        return self.down_proj(gated, *rows_of_expert)


class FeedForward(Mlp):
    def __init__(self, block: record.FeedForward, parts: Parts) -> None:
        super().__init__(block.activation, parts.linear)


class Moe(Body):
    """Tokens sorted by expert, one product an expert and matrix, weighted sum back in place.

    After a forward, `load_E` holds the tokens each expert got and `balance_loss` the loss of
    Switch Transformers (arXiv 2101.03961, equation 4, over all choices): 1 when balanced.
    """

    load_E: Tensor
    balance_loss: Tensor
    correction_bias: Tensor

    def __init__(self, block: MoeRecord, parts: Parts) -> None:
        super().__init__()
        self.block = block
        self.router = parts.linear("router")
        self.experts = Mlp(block.activation, parts.stacked, "experts.")
        self.shared = Mlp(block.activation, parts.linear, "shared.") if block.n_shared else None
        if block.router == "sigmoid_bias":
            # fp32 whatever the model has: a step of 0.001 is lost on a bfloat16 above 0.25
            bias_E = torch.zeros(block.n_experts, device=parts.device, dtype=torch.float32)
            self.register_buffer("correction_bias", bias_E)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        chosen_NK, share_NK = self._route(x_ND)
        order = chosen_NK.flatten().argsort(stable=True)
        rows_ND = x_ND[order // self.block.top_k]
        mixed_ND = self.experts(rows_ND, self.load_E.tolist())
        mixed_NKD = mixed_ND[order.argsort()].unflatten(0, chosen_NK.shape)
        y_ND = (share_NK.to(x_ND.dtype).unsqueeze(1) @ mixed_NKD).squeeze(1)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view_as(x_BTD)

    def _route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and their shares, which sum to one."""
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        logits_NE = F.linear(x_ND.to(wide), self.router.weight.to(wide))
        if self.block.router == "softmax":
            log_score_NE = logits_NE.log_softmax(-1)
            chosen_NK = log_score_NE.topk(self.block.top_k).indices
        else:
            log_score_NE = F.logsigmoid(logits_NE)
            chosen_NK = (log_score_NE.exp() + self.correction_bias).topk(self.block.top_k).indices
        share_NK = log_score_NE.gather(-1, chosen_NK).softmax(-1)  # scores over their sum, in logs

        self.load_E = chosen_NK.flatten().bincount(minlength=self.block.n_experts)
        fraction_E = self.load_E.to(wide) / chosen_NK.numel()
        self.balance_loss = self.block.n_experts * fraction_E @ log_score_NE.exp().mean(0)
        return chosen_NK, share_NK

    def rebalance(self, rate: float) -> None:
        """Move the correction bias of each expert by `rate` towards an equal load (DeepSeek-V3)."""
        load_E = self.load_E.float()
        self.correction_bias += rate * torch.sign(load_E.mean() - load_E)
