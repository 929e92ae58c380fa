"""An architecture as a PyTorch module that trains and decodes.

model = build(architecture)
loss = model.loss(tokens_BT)                        training
logits_BTV = model(tokens_BT)
logits_BV, caches = model.prefill(tokens_BT)        decoding: read texts of any lengths,
logits_BV, caches = model.step(tokens_B, caches)    then one token after another
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
from ..kernels.segments import resolve_segment_ids
from ..search_space.accounting import LocatedWeight, located_weights, mtp_module, mtp_weights
from ..search_space.architecture import Architecture
from ..search_space.operators import NumberFormat
from .balance import CORRECTED_ROUTERS, LOSS_ROUTERS
from .body import Pass, Unbuilt, document_positions, text_positions
from .caches import Memory
from .depth import DepthRouter
from .moe import MoE
from .parameters import Parameters
from .streams import AttentionResidual, StreamHead
from .sub_block import SubBlock, norm_of_sum, run_stack, stream_sum

MTP_WEIGHT = 0.3  # of the loss, as in DeepSeek-V3 section 4.2


@dataclass(kw_only=True)
class Caches(Memory):
    """Decoding state of a batch of texts: one cache per sub-block (None if it has no memory).

    `lengths_B` are the tokens read so far; `begun` says whether anything has been read.
    """

    blocks: list[Any]
    lengths_B: Tensor
    begun: bool = False

    def tensors(self) -> list[Tensor]:
        return [tensor for cache in self.blocks if cache for tensor in cache.tensors()]


class HybridLM(nn.Module):
    """A decoder-only language model of any architecture; create it with `build`.

    Parameter names are those that search_space/accounting.py counts by. Raises Unbuilt for an
    encoder-decoder and for a block whose record has a field without a module.
    """

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
        builder = _StackBuilder(architecture, device, dtype, generator)
        params = builder.around_stack()
        table = params.normal("embedding.weight")
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.embedding.weight = table
        scale = architecture.embedding_scale
        self.embedding_scale = architecture.d_model**0.5 if scale == "sqrt_d_model" else scale
        self.embedding_norm = (
            params.stack_norm("embedding_norm") if architecture.embedding_norm else nn.Identity()
        )
        self.blocks = builder.stack(architecture)
        self.stream_head = self.look_back = None
        if architecture.hyper_connections:
            self.stream_head = StreamHead(params.under("stream_head."))
        if architecture.attention_residuals:
            self.look_back = AttentionResidual(params)
        self.norm = params.stack_norm("norm")
        self.lm_head = None if architecture.tied_embeddings else params.linear("lm_head")
        depth = architecture.mtp.depth if architecture.mtp else 0
        modules = nn.ModuleList(MTPModule(architecture, builder) for _ in range(depth))
        self.mtp = cast("Sequence[MTPModule]", modules)

    def forward(
        self,
        tokens_BT: Tensor,
        segment_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """logits_BTV of token ids, int64 [B, T].

        Rows may be packed with several documents, which do not see each other: `segment_ids`
        [B, T], nondecreasing along T, number them; or `cu_seqlens` [documents + 1], int32 or int64,
        are the cumulative document lengths of a single row (B = 1). Raises ValueError if both are
        given, or `cu_seqlens` for several rows.
        """
        segment_ids = resolve_segment_ids(segment_ids, cu_seqlens, tokens_BT)
        return self.logits(self.hidden(self.embed(tokens_BT), tokens_BT, segment_ids))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """x_BTD, the input of the stack: scaled and, if the architecture says so, normed."""
        return self.embedding_norm(self.embedding(tokens_BT) * self.embedding_scale)

    def hidden(
        self,
        x_BTD: Tensor,
        tokens_BT: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """hidden_BTD after the final norm, from the embedded input of the stack.

        `tokens_BT` are needed by hash routers only. Raises Unbuilt where they are missing.
        """
        run = Pass(
            positions_BT=_positions(x_BTD, segment_ids),
            tokens_BT=tokens_BT,
            embedded_BTD=x_BTD,
            segment_ids_BT=None if segment_ids is None else segment_ids.int(),
            whole_rows=segment_ids is None,
        )
        return self._stack(x_BTD, run, None)

    def loss(
        self,
        tokens_BT: Tensor,
        segment_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Mean next-token cross-entropy in nats, a scalar, over all tokens but a document's first.

        With MTP modules, plus `MTP_WEIGHT` times the mean loss of their predictions (DeepSeek-V3,
        arXiv 2412.19437, section 2.2). Balance losses are separate, see `balance_loss`. Documents
        are given as in `forward`.
        """
        segment_ids = resolve_segment_ids(segment_ids, cu_seqlens, tokens_BT)
        hidden_BTD = self.hidden(self.embed(tokens_BT), tokens_BT, segment_ids)
        loss = self._next_token_loss(hidden_BTD, tokens_BT, segment_ids, 1)
        mtp_losses = [
            self._next_token_loss(hidden, tokens_BT, segment_ids, k + 1)
            for k, hidden in enumerate(self._mtp_hidden(hidden_BTD, tokens_BT, segment_ids), 1)
        ]
        return loss + MTP_WEIGHT * torch.stack(mtp_losses).mean() if mtp_losses else loss

    def _next_token_loss(
        self, hidden_BTD: Tensor, tokens_BT: Tensor, segment_ids: Tensor | None, ahead: int
    ) -> Tensor:
        """Mean cross-entropy of the tokens `ahead` places on, inside the same document."""
        target_BT = F.pad(tokens_BT[:, ahead:], (0, ahead), value=IGNORED)
        if segment_ids is not None:
            of_target = F.pad(segment_ids[:, ahead:], (0, ahead))
            target_BT = target_BT.masked_fill(of_target != segment_ids, IGNORED)
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

    def _mtp_hidden(
        self, hidden_BTD: Tensor, tokens_BT: Tensor, segment_ids: Tensor | None
    ) -> Iterator[Tensor]:
        """hidden_BTD of each MTP module in turn, one token shorter than the one before."""
        positions_BT = _positions(tokens_BT, segment_ids)
        for k, module in enumerate(self.mtp, 1):
            T = tokens_BT.shape[1] - k
            run = Pass(
                positions_BT=positions_BT[:, :T],
                tokens_BT=tokens_BT[:, k:],
                segment_ids_BT=None if segment_ids is None else segment_ids[:, :T].int(),
                whole_rows=segment_ids is None,
            )
            hidden_BTD = module(hidden_BTD[:, :T], self.embed(tokens_BT[:, k:]), run)
            yield hidden_BTD

    def _stack(self, x: Tensor, run: Pass, caches: list[Any] | None) -> Tensor:
        streams = self.architecture.hyper_connections
        if streams is not None:
            x = x[:, :, None].expand(-1, -1, streams.streams, -1)
        stream = run_stack(self.blocks, x, run, caches)
        if self.stream_head is not None:
            stream = self.stream_head(stream_sum(stream)), None
        if self.look_back is not None:
            stream = self.look_back(stream_sum(stream), run), None
        return norm_of_sum(self.norm, stream)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]: the head, its scale and its soft cap."""
        if self.lm_head is None:
            logits = F.linear(hidden, self.embedding.weight)
        else:
            logits = self.lm_head(hidden)
        logits = logits * self.architecture.logit_scale
        cap = self.architecture.final_logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, Caches]:
        """(logits_BV after the last token of each row, new caches) of B prompts.

        `lengths_B` (at least 1 each, at most T; all T if None) are the lengths of shorter rows;
        tokens behind them are not read. Raises Unbuilt where a router selects tokens by expert.
        """
        caches = self.new_caches(len(tokens_BT))
        return self.extend(tokens_BT, caches, lengths_B)

    @torch.no_grad()
    def step(self, tokens_B: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
        """(logits_BV after one more token per row, `caches` updated in place)."""
        return self.extend(tokens_B[:, None], caches)

    @torch.no_grad()
    def extend(
        self, tokens_BT: Tensor, caches: Caches, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, Caches]:
        """(logits_BV after the last of several more tokens per row, `caches` updated in place).

        `lengths_B` as in `prefill`.
        """
        hidden_BTD = self.read(tokens_BT, caches, lengths_B)
        if lengths_B is None:
            return self.logits(hidden_BTD[:, -1]), caches
        last_B11 = (lengths_B - 1)[:, None, None].expand(-1, 1, hidden_BTD.shape[-1])
        return self.logits(hidden_BTD.gather(1, last_B11)[:, 0]), caches

    @torch.no_grad()
    def read(self, tokens_BT: Tensor, caches: Caches, lengths_B: Tensor | None = None) -> Tensor:
        """hidden_BTD of several more tokens per row, undefined behind `lengths_B`.

        `caches` are updated in place.
        """
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
            whole_rows=valid_BT is None and not caches.begun,
        )
        hidden_BTD = self._stack(x_BTD, run, caches.blocks)
        caches.lengths_B = caches.lengths_B + (T if lengths_B is None else lengths_B)
        caches.begun = True
        return hidden_BTD

    def new_caches(self, batch: int) -> Caches:
        """Caches of `batch` empty texts.

        Raises Unbuilt where a router selects tokens by expert, which looks ahead.
        """
        lengths_B = torch.zeros(batch, dtype=torch.int64, device=self.embedding.weight.device)
        return Caches(blocks=[block.new_cache(batch) for block in self.blocks], lengths_B=lengths_B)

    def fill_random(self, batch: int, tokens: int) -> Caches:
        """Caches with random content of `batch` texts of `tokens` tokens, for timing decoding."""
        ones = torch.zeros(batch, 1, dtype=torch.int64, device=self.embedding.weight.device)
        _, caches = self.prefill(ones)
        for block, cache in zip(self.blocks, caches.blocks, strict=True):
            if cache is not None:
                fraction = 1.0 if block.router is None else block.router.capacity
                cache.fill_random(max(1, round(fraction * tokens)))
        caches.lengths_B = torch.full_like(caches.lengths_B, tokens)
        return caches

    def balance_loss(self) -> Tensor:
        """Sum of the auxiliary losses of the last forward, a scalar; 0 without such routers.

        Each softmax, sigmoid or SparseMixer router of experts adds 1 when balanced; each depth
        router adds the loss that trains its capacity.
        """
        losses = [moe.balance_loss for moe in self._moes(LOSS_ROUTERS)]
        losses += [
            router.capacity_loss for router in self.modules() if isinstance(router, DepthRouter)
        ]
        return torch.stack(losses).sum() if losses else self.norm.weight.new_zeros(())

    def rebalance(self, rate: float = 1e-3) -> None:
        """Move the routers' correction biases by `rate`; call it after an optimizer step."""
        for moe in self._moes(CORRECTED_ROUTERS):
            moe.rebalance(rate)

    def _moes(self, routers: tuple[str, ...]) -> list[MoE]:
        return [m for m in self.modules() if isinstance(m, MoE) and m.block.router in routers]


def _positions(x: Tensor, segment_ids: Tensor | None) -> Tensor:
    """positions_BT of x [B, T, ...]."""
    if segment_ids is not None:
        return document_positions(segment_ids)
    return text_positions(x.shape[0], x.shape[1], x.device)


class MTPModule(nn.Module):
    """One module of multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    h_t = norm(stack(W [norm(embed(token_{t+k})), norm(h_t)])): module k maps the hidden state of
    the module before it and the embedding of the token k places on to the hidden state that
    predicts the token after that one. Embedding and head are the model's.
    """

    def __init__(self, architecture: Architecture, builder: "_StackBuilder") -> None:
        super().__init__()
        params = builder.around_mtp_stack()
        self.embedding_norm = params.stack_norm("embedding_norm")
        self.hidden_norm = params.stack_norm("hidden_norm")
        self.in_proj = params.linear("in_proj")
        self.blocks = builder.stack(mtp_module(architecture))
        self.norm = params.stack_norm("norm")
        self.streams = architecture.hyper_connections

    def new_cache(self, batch: int) -> list[Any]:
        """An empty cache per sub-block."""
        return [block.new_cache(batch) for block in self.blocks]

    def forward(
        self, hidden_BTD: Tensor, next_BTD: Tensor, run: Pass, caches: list[Any] | None = None
    ) -> Tensor:
        """hidden_BTD; `next_BTD` are the embeddings of the tokens k places on."""
        both = torch.cat([self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)], -1)
        x = self.in_proj(both)
        if self.streams is not None:
            x = x[:, :, None].expand(-1, -1, self.streams.streams, -1)
        stream = run_stack(self.blocks, x, run, caches)
        if self.streams is not None:
            stream = stream_sum(stream).mean(2), None
        return norm_of_sum(self.norm, stream)[0]


class _StackBuilder:
    """Creates the sub-blocks of a model in the order in which weights are drawn."""

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> None:
        self.architecture, self.device, self.dtype = architecture, device, dtype
        self.generator = generator

    def around_stack(self) -> Parameters:
        """The weights outside the sub-blocks."""
        located = (w for w in located_weights(self.architecture) if w.sub_block is None)
        return self._parameters({w.weight.name: w for w in located}, self.architecture, None, 0, {})

    def around_mtp_stack(self) -> Parameters:
        """The weights outside the sub-blocks of one MTP module."""
        located = {
            weight.name: LocatedWeight(sub_block=None, weight=weight, format="bf16")
            for weight in mtp_weights(self.architecture)
        }
        return self._parameters(located, self.architecture, None, 0, {})

    def stack(self, architecture: Architecture) -> Sequence[SubBlock]:
        """All sub-blocks; later uses of a shared block are tied to the first ones."""
        by_index: dict[int | None, dict[str, LocatedWeight]] = {}
        for located in located_weights(architecture):
            by_index.setdefault(located.sub_block, {})[located.weight.name] = located
        by_group: dict[str, list[SubBlock]] = {}
        stack: list[SubBlock] = []
        for index, group in enumerate(architecture.symbols):
            earlier = by_group.setdefault(group, [])
            tied = _tied_parameters(architecture, group, earlier)
            located = by_index.get(index, {})
            params = self._parameters(located, architecture, index, len(earlier), tied)
            block = SubBlock(architecture, index, params)
            earlier.append(block)
            stack.append(block)
        return cast("Sequence[SubBlock]", nn.ModuleList(stack))

    def _parameters(
        self,
        located: dict[str, LocatedWeight],
        architecture: Architecture,
        index: int | None,
        earlier: int,
        tied: dict[str, nn.Parameter],
    ) -> Parameters:
        formats = {} if index is None else architecture.formats(index)
        kv: NumberFormat = formats.get("kv_cache", "bf16")
        weights = {name: w.weight for name, w in located.items()}
        return Parameters(
            weights=weights,
            formats={name: w.format for name, w in located.items()},
            tied={name: p for name, p in tied.items() if name not in weights},
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


def _tied_parameters(
    architecture: Architecture, group: str, earlier: list[SubBlock]
) -> dict[str, nn.Parameter]:
    """The parameters that the next use of a group shares with an earlier one, if any."""
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
    """The model of an architecture with fresh weights.

    Weights are equal for equal seed, device type and dtype; the global random state is not used.
    On the meta device the model has shapes and no storage. Raises Unbuilt where the architecture
    has a part without a module.
    """
    device = torch.device(device)
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    return HybridLM(architecture, device=device, dtype=dtype, generator=generator)
