"""Zamba2's shared transformer block, over the concatenation of stream and embedding."""

# B batch, T tokens, D model width, H query heads, G key/value heads, K head width

import torch
from torch import Tensor

from ...kernels.attention import op as attention
from ...kernels.rows import op as rows
from ...search_space.blocks import shared as record
from ...search_space.blocks.feed_forward import UNGATED
from ...search_space.operators import NumberFormat
from ..body import Body, Pass, Unbuilt
from ..caches import KeyValues, TokenCache
from ..feed_forward import GATES, ungated_activation
from ..parameters import Parameters
from ..positions import apply_rope
from ..precision import quantized_cache
from .masked_attention import causal_mask, masked_attention


class SharedBlock(Body):
    """Zamba2 (arXiv 2411.15242): y_BTD = W_use ffn(norm(attention(norm([x, embedding])))).

    All uses share its weights but W_use and a low-rank adapter of the feed-forward. The output is
    added to the input of the next sub-block, not to the residual stream (see `SubBlock`).
    """

    fields = frozenset(record.SharedBlock.model_fields)

    def __init__(self, block: record.SharedBlock, params: Parameters) -> None:
        super().__init__()
        self.block = block
        self.kv: NumberFormat = params.kv
        self.attention_norm = params.rms_norm("attention_norm")
        self.q_proj, self.k_proj = params.linear("q_proj"), params.linear("k_proj")
        self.v_proj, self.o_proj = params.linear("v_proj"), params.linear("o_proj")
        self.ffn_norm = params.rms_norm("ffn_norm")
        if block.activation not in UNGATED:
            self.gate_proj = params.linear("gate_proj")
        self.up_proj, self.down_proj = params.linear("up_proj"), params.linear("down_proj")
        self.adapter_a_proj = params.linear("adapter_a_proj")
        self.adapter_b_proj = params.linear("adapter_b_proj")
        self.use_proj = params.linear("use_proj", to_residual=True)
        self.scale = (block.head_dim / 2) ** -0.5

    def new_cache(self, batch: int) -> TokenCache:
        return TokenCache(batch, window=None, kv=self.kv)

    def forward(self, x_BTD: Tensor, run: Pass, cache: TokenCache | None = None) -> Tensor:
        if run.embedded_BTD is None:
            raise Unbuilt("a shared block needs the embedding, which is missing in an MTP module")
        both = self.attention_norm(torch.cat([x_BTD, run.embedded_BTD], -1))
        h_BTD = self.ffn_norm(self._attention(both, run, cache))
        return self.use_proj(self._feed_forward(h_BTD))

    def _attention(self, x: Tensor, run: Pass, cache: TokenCache | None) -> Tensor:
        heads, rope = (-1, self.block.head_dim), self.block.rope
        q, k, v = (p(x).unflatten(-1, heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        if rope is not None:
            q, k = (apply_rope(x, rope, rope.rotated(self.block.head_dim), run) for x in (q, k))
        k, v = quantized_cache(k, self.kv), quantized_cache(v, self.kv)
        keys = KeyValues(cache, run.positions_BT, run.valid_BT, {"k": k, "v": v})
        if keys.prefill:
            o_BTHK = attention.attend_without_lse(
                q, k, v, scale=self.scale, segment_ids=run.segment_ids_BT
            )
        elif keys.decode:
            pages = keys.pages("k", "v", run.positions_BT[:, 0] + 1)
            o_BTHK, _ = attention.attend_cached(q, pages, scale=self.scale)
        else:
            mask_BTC = causal_mask(run.positions_BT, keys.positions_BC)
            o_BTHK, _ = masked_attention(
                q, keys["k"], keys["v"], lambda t: mask_BTC[:, None, t], scale=self.scale
            )
        return self.o_proj(o_BTHK.flatten(-2))

    def _feed_forward(self, h_BTD: Tensor) -> Tensor:
        """The feed-forward, with the adapter of this use on gate and up projection."""
        adapted = self.adapter_b_proj(self.adapter_a_proj(h_BTD))
        if self.block.activation in UNGATED:
            up = self.up_proj(h_BTD) + adapted
            return self.down_proj(ungated_activation(self.block.activation, up))
        to_gate, to_up = adapted.chunk(2, -1)
        gate, up = self.gate_proj(h_BTD) + to_gate, self.up_proj(h_BTD) + to_up
        return self.down_proj(rows.glu(gate, up, GATES[self.block.activation]))
