"""An architecture as a module that trains and decodes.

model = build(architecture)
logits_BTV = model(tokens_BT)                       training
logits_BV, caches = model.prefill(tokens_BT)        decoding: read a text,
logits_BV, caches = model.step(tokens_B, caches)    then go on token by token
"""

# B batch, T tokens, D model width, V vocabulary

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..search_space.accounting import placed_weights
from ..search_space.architecture import Architecture
from .feed_forward import FeedForward, Moe
from .mixers.attention import Attention
from .mixers.gated_deltanet import GatedDeltaNet
from .mixers.mamba2 import Mamba2
from .mixers.mla import Mla
from .parts import Parts

BODIES = {
    "attn": Attention,
    "mla": Mla,
    "mamba2": Mamba2,
    "gdn": GatedDeltaNet,
    "ffn": FeedForward,
    "moe": Moe,
}


class SubBlock(nn.Module):
    """x + norm_out(body(norm_in(x))), with the norms that the placement asks for."""

    def __init__(self, block: Any, parts: Parts) -> None:
        super().__init__()
        has = parts.weights
        self.norm_in = parts.norm("norm_in") if "norm_in.weight" in has else nn.Identity()
        self.body = BODIES[block.kind](block, parts)
        self.norm_out = parts.norm("norm_out") if "norm_out.weight" in has else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.norm_out(self.body(self.norm_in(x_BTD)))

    def prefill(self, x_BTD: Tensor) -> tuple[Tensor, Any]:
        y_BTD, cache = self.body.prefill(self.norm_in(x_BTD))
        return x_BTD + self.norm_out(y_BTD), cache

    def step(self, x_BTD: Tensor, cache: Any) -> Tensor:
        return x_BTD + self.norm_out(self.body.step(self.norm_in(x_BTD), cache))


class HybridLM(nn.Module):
    """The decoder; its parameters bear the names that accounting counts them by."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        placed = placed_weights(architecture)

        def parts_of(index: int | None) -> Parts:
            formats = {} if index is None else architecture.formats(index)
            return Parts(
                weights={own.weight.name: own for own in placed if own.sub_block == index},
                fp8_cache=formats.get("kv_cache") == "fp8",
                recipe=architecture.precision.recipe,
                norm_eps=architecture.norm.eps,
                num_sub_blocks=len(architecture.symbols),
                device=device,
                dtype=dtype,
                generator=generator,
            )

        around = parts_of(None)
        self.embedding = nn.Embedding.from_pretrained(
            around.normal("embedding.weight"), freeze=False
        )
        stack = [SubBlock(body.block, parts_of(body.sub_block)) for body in architecture.bodies]
        self.blocks = cast("Sequence[SubBlock]", nn.ModuleList(stack))
        self.norm = around.norm("norm")
        self.lm_head = None if architecture.tied_embeddings else around.linear("lm_head")

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """logits_BTV."""
        return self._logits(self.hidden(self.embedding(tokens_BT)))

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """The stack alone: from embedded input to final-normed output."""
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor) -> tuple[Tensor, list[Any]]:
        """logits_BV after the last token, and one cache a sub-block (None where it has none)."""
        x_BTD, caches = self.embedding(tokens_BT), []
        for block in self.blocks:
            x_BTD, cache = block.prefill(x_BTD)
            caches.append(cache)
        return self._logits(self.norm(x_BTD[:, -1])), caches

    @torch.no_grad()
    def step(self, tokens_B: Tensor, caches: list[Any]) -> tuple[Tensor, list[Any]]:
        """logits_BV after one more token a sequence; the caches are updated in place."""
        x_BTD = self.embedding(tokens_B[:, None])
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD = block.step(x_BTD, cache)
        return self._logits(self.norm(x_BTD[:, -1])), caches

    def balance_loss(self) -> Tensor:
        """Load-balancing loss of the last forward: 1 a balanced softmax router, summed over them."""
        losses = [moe.balance_loss for moe in self._moes("softmax")]
        return torch.stack(losses).sum() if losses else self.norm.weight.new_zeros(())

    def rebalance(self, rate: float = 1e-3) -> None:
        """After an optimizer step: move the biases of sigmoid routers towards an equal load."""
        for moe in self._moes("sigmoid_bias"):
            moe.rebalance(rate)

    def _moes(self, router: str) -> list[Moe]:
        return [m for m in self.modules() if isinstance(m, Moe) and m.block.router == router]

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight) if self.lm_head is None else self.lm_head(x)


def build(
    architecture: Architecture,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> HybridLM:
    """The model with fresh weights, the same for the same seed, device type and dtype.

    On the meta device it has shapes and no storage.
    """
    device = torch.device(device)
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    return HybridLM(architecture, device=device, dtype=dtype, generator=generator)
