"""Softmax attention with grouped heads: global, sliding-window, chunked or block-sparse."""

# B batch, T tokens, C keys, D model width, H query heads, G key/value heads, K key width,
# V value width, I heads of the index branch

import torch
from torch import Tensor, nn

from ...kernels.attention import op as attention
from ...search_space.blocks import attention as record
from ...search_space.operators import NumberFormat
from ..body import Body, Pass, SharedKeyValues
from ..caches import KeyValues, TokenCache
from ..layers import rms_normalized
from ..parameters import Parameters
from ..positions import apply_rope
from ..precision import quantized_cache
from .block_sparse import BlockIndex, block_sparse_attention, block_sparse_attention_cached
from .masked_attention import (
    causal_mask,
    dilated_attention,
    masked_attention,
    merge_attentions,
    within_segment,
)

Output = tuple[Tensor, Tensor]  # o_BTHV, lse_BHT


class Attention(Body):
    """MHA, MQA and GQA (arXiv 1706.03762, 1911.02150, 2305.13245): softmax(q k^T scale) v per head.

    q_BTHK, k_BTGK, v_BTGV are projections of x_BTD; the output is W_o of the H heads' o_BTHV. With
    an 8-bit KV cache, training and prefill too use keys and values rounded to its format.
    """

    fields = frozenset(record.Attention.model_fields) - {"cross", "relative_buckets"}

    def __init__(self, block: record.Attention, params: Parameters) -> None:
        super().__init__()
        self.block = block
        self.kv: NumberFormat = params.kv
        self.q_proj = params.linear("q_proj")
        if not block.kv_reuse:
            self.k_proj = params.linear("k_proj")
            if not block.k_eq_v:
                self.v_proj = params.linear("v_proj")
        self.gate_proj = params.linear("gate_proj") if block.out_gate != "none" else None
        self.o_proj = params.linear("o_proj", to_residual=True)
        normed = block.qk_norm in ("head", "full")
        self.q_norm = params.stack_norm("q_norm") if normed else nn.Identity()
        if not block.kv_reuse:
            self.k_norm = params.stack_norm("k_norm") if normed else nn.Identity()
        self.sinks = params.constant("sinks", 0.0) if block.sinks else None
        self.index = None
        if block.block_sparse:
            self.index = BlockIndex(block, params.under("index."))
        self.norm_eps = params.norm.eps
        self.scale = block.softmax_scale or block.head_dim**-0.5

    def new_cache(self, batch: int) -> TokenCache | None:
        if self.block.kv_reuse:
            return None
        block = self.block
        window, first = block.reach or block.chunk, block.global_tokens
        return TokenCache(batch, window=window, first=first, kv=self.kv)

    def forward(self, x_BTD: Tensor, run: Pass, cache: TokenCache | None = None) -> Tensor:
        block = self.block
        q_BTHK = self._rotated(self._normed(self.q_proj(x_BTD), self.q_norm), run)
        if block.temperature is not None:
            q_BTHK = q_BTHK * self._temperature(run, q_BTHK.dtype)
        if not block.kv_reuse:
            named = self._keys_and_values(x_BTD, run)
            if self.index is not None:
                named |= self.index.keys(x_BTD, run)
            keys = KeyValues(cache, run.positions_BT, run.valid_BT, named)
            run.shared_kv = SharedKeyValues(keys, block)
        assert run.shared_kv is not None, "an earlier block makes the keys that are reused"
        keys, owner = run.shared_kv
        plain = self.sinks is None and not block.global_tokens and block.dilation == 1
        if self.index is not None:
            o_BTHV, lse_BHT = self._block_sparse(self.index, x_BTD, q_BTHK, keys, run)
        elif keys.prefill and plain:
            return self._projected(x_BTD, self._prefill_output(q_BTHK, keys, run))
        elif keys.prefill:
            o_BTHV, lse_BHT = self._prefill(q_BTHK, keys, run)
        elif keys.decode and block.dilation == 1 and _reach(block) == _reach(owner):
            o_BTHV, lse_BHT = self._decode(q_BTHK, keys, run)
        else:
            o_BTHV, lse_BHT = self._extend(q_BTHK, keys, run)
        if self.sinks is not None:
            o_BTHV = attention.with_sinks(o_BTHV, lse_BHT, self.sinks)
        return self._projected(x_BTD, o_BTHV)

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        heads = (-1, self.block.head_dim)
        if self.block.qk_norm == "full":
            return norm(x).unflatten(-1, heads)
        return norm(x.unflatten(-1, heads))

    def _rotated(self, x_BTHK: Tensor, run: Pass) -> Tensor:
        """Rotary embedding, then the weightless norm of `qk_norm: l2`."""
        block = self.block
        if block.rope is not None:
            x_BTHK = apply_rope(x_BTHK, block.rope, block.rotated, run)
        if block.qk_norm == "l2":
            x_BTHK = rms_normalized(x_BTHK, self.norm_eps)
        return x_BTHK

    def _temperature(self, run: Pass, dtype: torch.dtype) -> Tensor:
        """Factor on the queries: 1 + scale log(1 + floor((position + 1) / floor)) (Llama 4)."""
        record = self.block.temperature
        assert record is not None, "called where the block has one"
        floors_BT = (run.positions_BT + 1).div(record.floor, rounding_mode="floor")
        growth_BT = torch.log1p(floors_BT.double())
        return (1 + record.scale * growth_BT)[..., None, None].to(dtype)

    def _keys_and_values(self, x_BTD: Tensor, run: Pass) -> dict[str, Tensor]:
        block = self.block
        projected = self.k_proj(x_BTD)
        k_BTGK = self._rotated(self._normed(projected, self.k_norm), run)
        v = projected if block.k_eq_v else self.v_proj(x_BTD)
        v_BTGV = v.unflatten(-1, (-1, block.value_dim))
        if block.v_norm:
            v_BTGV = rms_normalized(v_BTGV, self.norm_eps)
        if block.value_scale != 1:
            v_BTGV = v_BTGV * block.value_scale
        return {"k": quantized_cache(k_BTGK, self.kv), "v": quantized_cache(v_BTGV, self.kv)}

    def _prefill_output(self, q_BTHK: Tensor, keys: KeyValues, run: Pass) -> Tensor:
        """o_BTHV of whole texts where the log-sum-exp is not needed."""
        block = self.block
        return attention.attend_without_lse(
            q_BTHK,
            keys["k"],
            keys["v"],
            window=block.window,
            scale=self.scale,
            softcap=block.logit_softcap,
            segment_ids=_segments(run, block.chunk),
        )

    def _prefill(self, q_BTHK: Tensor, keys: KeyValues, run: Pass) -> Output:
        block = self.block
        settings = {"window": block.window, "scale": self.scale, "softcap": block.logit_softcap}
        if block.dilation > 1:
            windowed = dilated_attention(
                q_BTHK, keys["k"], keys["v"], block.dilation, run, **settings
            )
        else:
            segment_ids = _segments(run, block.chunk)
            windowed = attention.attend(
                q_BTHK, keys["k"], keys["v"], segment_ids=segment_ids, **settings
            )
        if not block.global_tokens:
            return windowed
        return merge_attentions([windowed, self._attend_global(q_BTHK, keys, run)])

    def _attend_global(self, q_BTHK: Tensor, keys: KeyValues, run: Pass) -> Output:
        """Attention to the first tokens of a text where the window does not hold them."""
        block, positions_BT = self.block, run.positions_BT
        first = slice(block.global_tokens if run.whole_rows else None)
        window = {"window": block.window, "dilation": block.dilation}
        mask_BTC = causal_mask(
            positions_BT, positions_BT, **window, global_tokens=block.global_tokens
        )
        mask_BTC &= ~causal_mask(positions_BT, positions_BT, **window)
        mask_BTC = within_segment(run, mask_BTC)[:, :, first]
        return masked_attention(
            q_BTHK,
            keys["k"][:, first],
            keys["v"][:, first],
            lambda t: mask_BTC[:, None, t],
            scale=self.scale,
            softcap=block.logit_softcap,
        )

    def _decode(self, q_BTHK: Tensor, keys: KeyValues, run: Pass) -> Output:
        """One new token per row over all that the cache holds, of a chunk what is written."""
        block, position_B = self.block, run.positions_BT[:, 0]
        last_B = position_B % block.chunk if block.chunk else position_B
        pages = keys.pages("k", "v", last_B + 1)
        return attention.attend_cached(q_BTHK, pages, scale=self.scale, softcap=block.logit_softcap)

    def _extend(self, q_BTHK: Tensor, keys: KeyValues, run: Pass) -> Output:
        """Several new tokens over cached ones."""
        block = self.block
        mask_BTC = causal_mask(
            run.positions_BT,
            keys.positions_BC,
            window=block.window,
            dilation=block.dilation,
            global_tokens=block.global_tokens,
            chunk=block.chunk,
        )
        return masked_attention(
            q_BTHK,
            keys["k"],
            keys["v"],
            lambda t: mask_BTC[:, None, t],
            scale=self.scale,
            softcap=block.logit_softcap,
        )

    def _block_sparse(
        self, index: BlockIndex, x_BTD: Tensor, q_BTHK: Tensor, keys: KeyValues, run: Pass
    ) -> Output:
        """By the kernels for whole texts and single tokens.

        Masked in torch for several tokens after cached ones, for tokens that a depth router
        selected, and for whole texts under a soft cap, which the kernel does not have.
        """
        q_BTIK = index.queries(x_BTD, q_BTHK, run)
        softcap = self.block.logit_softcap
        if keys.prefill and not run.subset and softcap is None:
            return block_sparse_attention(index, q_BTIK, q_BTHK, keys, run, self.scale)
        if keys.decode and keys.cache is not None and keys.cache.room is None:
            return block_sparse_attention_cached(
                index, q_BTIK, q_BTHK, keys, run, scale=self.scale, softcap=softcap
            )
        visible_BTC = causal_mask(run.positions_BT, keys.positions_BC)
        if keys.prefill:
            visible_BTC = within_segment(run, visible_BTC)
        chosen_BITC = index.mask(q_BTIK, index.scored(keys), keys.positions_BC, visible_BTC, run)
        group = q_BTHK.shape[2] // chosen_BITC.shape[1]
        return masked_attention(
            q_BTHK,
            keys["k"],
            keys["v"],
            lambda t: (visible_BTC[:, None, t] & chosen_BITC[:, :, t]).repeat_interleave(group, 1),
            scale=self.scale,
            softcap=softcap,
        )

    def _projected(self, x_BTD: Tensor, o_BTHV: Tensor) -> Tensor:
        """y_BTD: the output gate and projection."""
        return self.o_proj(self._gated(x_BTD, o_BTHV))

    def _gated(self, x_BTD: Tensor, o_BTHV: Tensor) -> Tensor:
        if self.gate_proj is None:
            return o_BTHV.flatten(-2)
        gate = self.gate_proj(x_BTD).sigmoid()
        if self.block.out_gate == "headwise":
            return (o_BTHV * gate[..., None]).flatten(-2)
        return o_BTHV.flatten(-2) * gate


def _reach(block: record.Attention) -> tuple[int | None, ...]:
    return block.window, block.dilation, block.global_tokens, block.chunk


def _segments(run: Pass, chunk: int | None) -> Tensor | None:
    """segment_ids_BT of a pass, with every chunk of a document as one of its own."""
    if chunk is None:
        return run.segment_ids_BT
    starts_BT = run.positions_BT % chunk == 0
    return starts_BT.cumsum(1, dtype=torch.int32)
