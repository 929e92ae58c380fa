"""Zamba2's shared block: attention and feed-forward over the stream beside the embedding."""

# B batch, T tokens, D model width, H query heads, G key/value heads, K head width

import torch
from torch import Tensor

from ...kernels.attention import op as attention
from ...kernels.rows import op as rows
from ...search_space.blocks import shared as record
from ...search_space.blocks.feed_forward import UNGATED
from ...search_space.operators import NumberFormat
from ..body import Body, Pass, Unbuilt
from ..caches import TokenCache
from ..feed_forward import GATES, alone
from ..parts import Parts
from ..precision import quantized_cache
from .attention import rotated
from .masked_attention import Held, attend_where, before

NUDGE = "what a shared block adds to the next one's input"


class SharedBlock(Body):
    """arXiv 2411.15242. Its output goes to the input of the next block, not into the stream."""

    fields = frozenset(record.SharedBlock.model_fields)

    def __init__(self, block: record.SharedBlock, parts: Parts) -> None:
        super().__init__()
        self.block = block
        self.kv: NumberFormat = parts.kv
        self.attention_norm = parts.rms_norm("attention_norm")
        self.q_proj, self.k_proj = parts.linear("q_proj"), parts.linear("k_proj")
        self.v_proj, self.o_proj = parts.linear("v_proj"), parts.linear("o_proj")
        self.ffn_norm = parts.rms_norm("ffn_norm")
        if block.activation not in UNGATED:
            self.gate_proj = parts.linear("gate_proj")
        self.up_proj, self.down_proj = parts.linear("up_proj"), parts.linear("down_proj")
        self.adapter_a_proj = parts.linear("adapter_a_proj")
        self.adapter_b_proj = parts.linear("adapter_b_proj")
        self.use_proj = parts.linear("use_proj", to_residual=True)
        self.scale = (block.head_dim / 2) ** -0.5

    def new_cache(self, batch: int) -> TokenCache:
        return TokenCache(batch, window=None, kv=self.kv)

    def forward(self, x_BTD: Tensor, run: Pass, cache: TokenCache | None = None) -> Tensor:
        if run.embedded_BTD is None:
            raise Unbuilt("a shared block reads the embedding, which this pass does not have")
        both = self.attention_norm(torch.cat([x_BTD, run.embedded_BTD], -1))
        h_BTD = self.ffn_norm(self._attended(both, run, cache))
        return self.use_proj(self._fed(h_BTD))

    def _attended(self, x: Tensor, run: Pass, cache: TokenCache | None) -> Tensor:
        heads, rope = (-1, self.block.head_dim), self.block.rope
        q, k, v = (p(x).unflatten(-1, heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        if rope is not None:
            q, k = (rotated(x, rope, rope.rotated(self.block.head_dim), run) for x in (q, k))
        k, v = quantized_cache(k, self.kv), quantized_cache(v, self.kv)
        held = Held(cache, run, {"k": k, "v": v})
        if held.plain:
            o_BTHK = attention.attend_without_lse(
                q, k, v, scale=self.scale, segment_ids=run.segment_ids_BT
            )
        elif held.newest:
            pages = held.pages("k", "v", run.positions_BT[:, 0] + 1)
            o_BTHK, _ = attention.attend_cached(q, pages, scale=self.scale)
        else:
            seen_BTC = before(run.positions_BT, held.positions_BC)
            o_BTHK, _ = attend_where(
                q, held["k"], held["v"], lambda t: seen_BTC[:, None, t], scale=self.scale
            )
        return self.o_proj(o_BTHK.flatten(-2))

    def _fed(self, h_BTD: Tensor) -> Tensor:
        """The feed-forward, with this use's adapter on its inputs."""
        adapted = self.adapter_b_proj(self.adapter_a_proj(h_BTD))
        if self.block.activation in UNGATED:
            return self.down_proj(alone(self.block.activation, self.up_proj(h_BTD) + adapted))
        of_gate, of_up = adapted.chunk(2, -1)
        gate, up = self.gate_proj(h_BTD) + of_gate, self.up_proj(h_BTD) + of_up
        return self.down_proj(rows.glu(gate, up, GATES[self.block.activation]))
