"""An architecture as a module that trains and decodes.

model = build(architecture)
loss = model.loss(tokens_BT)                        training
logits_BTV = model(tokens_BT)
logits_BV, caches = model.prefill(tokens_BT)        decoding: read texts, of any lengths,
logits_BV, caches = model.step(tokens_B, caches)    then go on token by token
"""

# B batch, T tokens, S residual streams, D model width, V vocabulary

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.rows import op as rows
from ..kernels.rows.reference import IGNORED
from ..search_space.accounting import LocatedWeight, located_weights, mtp_module, mtp_weights
from ..search_space.architecture import Architecture
from ..search_space.operators import NumberFormat
from .body import Pass, Unbuilt, document_positions, text_positions
from .caches import Memory
from .depth import DepthRouter
from .experts import MoE
from .parts import Parts
from .streams import LookBack, StreamHead
from .sub_block import SubBlock

MTP_WEIGHT = 0.3  # of the loss, as in DeepSeek-V3 section 4.2
CORRECTED = ("sigmoid_bias", "sqrtsoftplus_bias")  # routers that a bias balances
BALANCED = ("softmax", "sigmoid", "sparsemixer")  # those that a loss does


@dataclass(kw_only=True)
class Caches(Memory):
    """What a model keeps of the texts it has read: a cache a sub-block, and how long each text is."""

    blocks: list[Any]
    lengths_B: Tensor
    begun: bool = False

    def tensors(self) -> list[Tensor]:
        return [tensor for cache in self.blocks if cache for tensor in cache.tensors()]


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
        if architecture.encoder:
            raise Unbuilt("an encoder-decoder is counted, not built")
        self.architecture = architecture
        make = _Maker(architecture, device, dtype, generator)
        around = make.around()
        table = around.normal("embedding.weight")
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.embedding.weight = table
        scale = architecture.embedding_scale
        self.embedding_scale = architecture.d_model**0.5 if scale == "sqrt_d_model" else scale
        self.embedding_norm = (
            around.stack_norm("embedding_norm") if architecture.embedding_norm else nn.Identity()
        )
        self.blocks = make.stack(architecture)
        self.stream_head = self.look_back = None
        if architecture.hyper_connections:
            self.stream_head = StreamHead(around.under("stream_head."))
        if architecture.attention_residuals:
            self.look_back = LookBack(around)
        self.norm = around.stack_norm("norm")
        self.lm_head = None if architecture.tied_embeddings else around.linear("lm_head")
        depth = architecture.mtp.depth if architecture.mtp else 0
        modules = nn.ModuleList(MTPModule(architecture, make) for _ in range(depth))
        self.mtp = cast("Sequence[MTPModule]", modules)

    def forward(self, tokens_BT: Tensor, segment_ids_BT: Tensor | None = None) -> Tensor:
        """logits_BTV; `segment_ids_BT` numbers the documents of packed rows."""
        return self.logits(self.hidden(self.embed(tokens_BT), tokens_BT, segment_ids_BT))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """x_BTD: what the stack reads."""
        return self.embedding_norm(self.embedding(tokens_BT) * self.embedding_scale)

    def hidden(
        self,
        x_BTD: Tensor,
        tokens_BT: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """The stack alone: from embedded input to final-normed output."""
        run = Pass(
            positions_BT=self._positions(x_BTD, segment_ids_BT),
            tokens_BT=tokens_BT,
            embedded_BTD=x_BTD,
            segment_ids_BT=None if segment_ids_BT is None else segment_ids_BT.int(),
            reads_texts=segment_ids_BT is None,
        )
        return self._stack(x_BTD, run, None)

    def loss(self, tokens_BT: Tensor, segment_ids_BT: Tensor | None = None) -> Tensor:
        """Mean nats of each token but the first of a document, and of the tokens that MTP modules
        predict, these at `MTP_WEIGHT`."""
        hidden_BTD = self.hidden(self.embed(tokens_BT), tokens_BT, segment_ids_BT)
        loss = self._next_token_loss(hidden_BTD, tokens_BT, segment_ids_BT, 1)
        ahead = [
            self._next_token_loss(hidden, tokens_BT, segment_ids_BT, k + 1)
            for k, hidden in enumerate(self._ahead(hidden_BTD, tokens_BT, segment_ids_BT), 1)
        ]
        return loss + MTP_WEIGHT * torch.stack(ahead).mean() if ahead else loss

    def _next_token_loss(
        self, hidden_BTD: Tensor, tokens_BT: Tensor, segment_ids_BT: Tensor | None, ahead: int
    ) -> Tensor:
        target_BT = F.pad(tokens_BT[:, ahead:], (0, ahead), value=IGNORED)
        if segment_ids_BT is not None:
            of_target = F.pad(segment_ids_BT[:, ahead:], (0, ahead))
            target_BT = target_BT.masked_fill(of_target != segment_ids_BT, IGNORED)
        target_BT = target_BT[:, : hidden_BTD.shape[1]]
        if self.lm_head is not None and self.lm_head.format != "bf16":
            logits_BTV = self.logits(hidden_BTD).float()
            return F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten())
        head = self.embedding if self.lm_head is None else self.lm_head
        return rows.linear_cross_entropy(
            hidden_BTD,
            head.weight,
            target_BT,
            bias=None if self.lm_head is None else self.lm_head.bias,
            scale=self.architecture.logit_scale,
            softcap=self.architecture.final_logit_softcap,
        )

    def _ahead(
        self, hidden_BTD: Tensor, tokens_BT: Tensor, segment_ids_BT: Tensor | None
    ) -> Iterator[Tensor]:
        """The hidden states of the MTP modules, each one token shorter than the one before."""
        positions_BT = self._positions(tokens_BT, segment_ids_BT)
        for k, module in enumerate(self.mtp, 1):
            T = tokens_BT.shape[1] - k
            run = Pass(
                positions_BT=positions_BT[:, :T],
                tokens_BT=tokens_BT[:, k:],
                segment_ids_BT=None if segment_ids_BT is None else segment_ids_BT[:, :T].int(),
                reads_texts=segment_ids_BT is None,
            )
            hidden_BTD = module(hidden_BTD[:, :T], self.embed(tokens_BT[:, k:]), run)
            yield hidden_BTD

    def _positions(self, x: Tensor, segment_ids_BT: Tensor | None) -> Tensor:
        if segment_ids_BT is not None:
            return document_positions(segment_ids_BT)
        return text_positions(x.shape[0], x.shape[1], x.device)

    def _stack(self, x: Tensor, run: Pass, caches: list[Any] | None) -> Tensor:
        streams = self.architecture.hyper_connections
        if streams is not None:
            x = x[:, :, None].expand(-1, -1, streams.streams, -1)
        for index, block in enumerate(self.blocks):
            x = block(x, run, None if caches is None else caches[index])
        if self.stream_head is not None:
            x = self.stream_head(x)
        if self.look_back is not None:
            x = self.look_back(x, run)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head, with its scale and soft-cap."""
        if self.lm_head is None:
            logits = F.linear(hidden, self.embedding.weight)
        else:
            logits = self.lm_head(hidden)
        logits = logits * self.architecture.logit_scale
        cap = self.architecture.final_logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, Caches]:
        """logits_BV after the last token of each row, and the caches.

        Rows may be shorter than T: `lengths_B` says how long each is, at least one token, and what
        stands behind is not read.
        """
        caches = self.new_caches(len(tokens_BT))
        return self.extend(tokens_BT, caches, lengths_B)

    @torch.no_grad()
    def step(self, tokens_B: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
        """logits_BV after one more token a sequence; the caches are updated in place."""
        return self.extend(tokens_B[:, None], caches)

    @torch.no_grad()
    def extend(
        self, tokens_BT: Tensor, caches: Caches, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, Caches]:
        """logits_BV after more tokens of each text, `lengths_B` of them (all where None)."""
        hidden_BTD = self.read(tokens_BT, caches, lengths_B)
        if lengths_B is None:
            return self.logits(hidden_BTD[:, -1]), caches
        last_B11 = (lengths_B - 1)[:, None, None].expand(-1, 1, hidden_BTD.shape[-1])
        return self.logits(hidden_BTD.gather(1, last_B11)[:, 0]), caches

    @torch.no_grad()
    def read(self, tokens_BT: Tensor, caches: Caches, lengths_B: Tensor | None = None) -> Tensor:
        """hidden_BTD of more tokens of each text; the caches keep them."""
        B, T = tokens_BT.shape
        index_BT = text_positions(B, T, tokens_BT.device)
        valid_BT = None
        if lengths_B is not None and bool((lengths_B < T).any()):
            valid_BT = index_BT < lengths_B[:, None]
        x_BTD = self.embed(tokens_BT)
        run = Pass(
            positions_BT=caches.lengths_B[:, None] + index_BT,
            tokens_BT=tokens_BT,
            embedded_BTD=x_BTD,
            valid_BT=valid_BT,
            reads_texts=valid_BT is None and not caches.begun,
        )
        hidden_BTD = self._stack(x_BTD, run, caches.blocks)
        caches.lengths_B = caches.lengths_B + (T if lengths_B is None else lengths_B)
        caches.begun = True
        return hidden_BTD

    def new_caches(self, batch: int) -> Caches:
        """Caches of so many empty texts."""
        lengths_B = torch.zeros(batch, dtype=torch.int64, device=self.embedding.weight.device)
        return Caches(blocks=[block.new_cache(batch) for block in self.blocks], lengths_B=lengths_B)

    def fill_random(self, batch: int, tokens: int) -> Caches:
        """Caches of so many texts of random content: decoding costs what it costs after real ones."""
        ones = torch.zeros(batch, 1, dtype=torch.int64, device=self.embedding.weight.device)
        _, caches = self.prefill(ones)
        for block, cache in zip(self.blocks, caches.blocks, strict=True):
            if cache is not None:
                share = 1.0 if block.router is None else block.router.capacity
                cache.fill_random(max(1, round(share * tokens)))
        caches.lengths_B = torch.full_like(caches.lengths_B, tokens)
        return caches

    def balance_loss(self) -> Tensor:
        """Auxiliary losses of the last forward: 1 for each balanced router, summed over them, and
        what pulls depth routers to their capacity."""
        losses = [moe.balance_loss for moe in self._moes(BALANCED)]
        losses += [
            router.share_loss for router in self.modules() if isinstance(router, DepthRouter)
        ]
        return torch.stack(losses).sum() if losses else self.norm.weight.new_zeros(())

    def rebalance(self, rate: float = 1e-3) -> None:
        """After an optimizer step: move the correction biases towards an equal load."""
        for moe in self._moes(CORRECTED):
            moe.rebalance(rate)

    def _moes(self, routers: tuple[str, ...]) -> list[MoE]:
        return [m for m in self.modules() if isinstance(m, MoE) and m.block.router in routers]


class MTPModule(nn.Module):
    """One module of multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    From the hidden state of a token and the embedding of the next, the hidden state that predicts
    the token after it; table and head are the model's.
    """

    def __init__(self, architecture: Architecture, make: "_Maker") -> None:
        super().__init__()
        parts = make.of_mtp()
        self.embedding_norm = parts.stack_norm("embedding_norm")
        self.hidden_norm = parts.stack_norm("hidden_norm")
        self.in_proj = parts.linear("in_proj")
        self.blocks = make.stack(mtp_module(architecture))
        self.norm = parts.stack_norm("norm")
        self.streams = architecture.hyper_connections

    def new_cache(self, batch: int) -> list[Any]:
        return [block.new_cache(batch) for block in self.blocks]

    def forward(
        self, hidden_BTD: Tensor, next_BTD: Tensor, run: Pass, caches: list[Any] | None = None
    ) -> Tensor:
        both = torch.cat([self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)], -1)
        x = self.in_proj(both)
        if self.streams is not None:
            x = x[:, :, None].expand(-1, -1, self.streams.streams, -1)
        for index, block in enumerate(self.blocks):
            x = block(x, run, None if caches is None else caches[index])
        return self.norm(x if self.streams is None else x.mean(2))


class _Maker:
    """Hands out the parts of a model in the order in which its weights are drawn."""

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> None:
        self.architecture, self.device, self.dtype = architecture, device, dtype
        self.generator = generator

    def around(self) -> Parts:
        """The parts around the stack."""
        placed = (p for p in located_weights(self.architecture) if p.sub_block is None)
        return self._parts({p.weight.name: p for p in placed}, self.architecture, None, 0, {})

    def of_mtp(self) -> Parts:
        """The parts around the blocks of one MTP module."""
        placed = {
            weight.name: LocatedWeight(sub_block=None, weight=weight, format="bf16")
            for weight in mtp_weights(self.architecture)
        }
        return self._parts(placed, self.architecture, None, 0, {})

    def stack(self, architecture: Architecture) -> Sequence[SubBlock]:
        """The sub-blocks of a stack; a use of a shared block borrows from the one that owns it."""
        of_index: dict[int | None, dict[str, LocatedWeight]] = {}
        for placed in located_weights(architecture):
            of_index.setdefault(placed.sub_block, {})[placed.weight.name] = placed
        made: dict[str, list[SubBlock]] = {}
        stack: list[SubBlock] = []
        for index, group in enumerate(architecture.symbols):
            earlier = made.setdefault(group, [])
            lent = _lent(architecture, group, earlier)
            parts = self._parts(of_index.get(index, {}), architecture, index, len(earlier), lent)
            block = SubBlock(architecture, index, parts)
            earlier.append(block)
            stack.append(block)
        return cast("Sequence[SubBlock]", nn.ModuleList(stack))

    def _parts(
        self,
        placed: dict[str, LocatedWeight],
        architecture: Architecture,
        index: int | None,
        earlier: int,
        lent: dict[str, nn.Parameter],
    ) -> Parts:
        formats = {} if index is None else architecture.formats(index)
        kv: NumberFormat = formats.get("kv_cache", "bf16")
        weights = {name: p.weight for name, p in placed.items()}
        return Parts(
            weights=weights,
            formats={name: p.format for name, p in placed.items()},
            lent={name: p for name, p in lent.items() if name not in weights},
            kv=kv,
            plan=architecture.precision,
            norm=architecture.norm,
            layer=0 if index is None else architecture.layer_of(index),
            num_layers=architecture.num_layers,
            first=earlier == 0,
            num_sub_blocks=len(architecture.symbols),
            device=self.device,
            dtype=self.dtype,
            generator=self.generator,
        )


def _lent(
    architecture: Architecture, group: str, earlier: list[SubBlock]
) -> dict[str, nn.Parameter]:
    """The parameters that the next use of a group finds made: those of the use that it shares."""
    block = architecture.blocks.get(group)
    if block is None or block.copies is None or len(earlier) < block.copies:
        return {}
    body = earlier[len(earlier) % block.copies].body
    assert body is not None, "a parallel group has no block of its own"
    return dict(body.named_parameters())


def build(
    architecture: Architecture,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> HybridLM:
    """The model with fresh weights, the same for the same seed, device type and dtype.

    On the meta device it has shapes and no storage. Raises Unbuilt where a part has no module.
    """
    device = torch.device(device)
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    return HybridLM(architecture, device=device, dtype=dtype, generator=generator)
