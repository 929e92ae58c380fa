"""Softmax attention with any grouping of heads, global or in a sliding window."""

# B batch, T tokens, D model width, H query heads, G key/value heads, R = H / G, K head width,
# N blocks of a text, C tokens of a block

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...search_space.blocks import attention as record
from ..body import Body
from ..parts import Parts
from ..precision import ROW, quantised
from .cache import TokenCache
from .rope import rotate

SMALLEST_BLOCK = 64  # a narrower window makes matrices too small to be worth a call


@dataclass(frozen=True, kw_only=True)
class KvCache:
    k: TokenCache
    v: TokenCache


class Attention(Body):
    """MHA, MQA and GQA (arXiv 2305.13245). With an FP8 cache, training too sees what it holds."""

    def __init__(self, block: record.Attention, parts: Parts) -> None:
        super().__init__()
        self.block, self.fp8_cache = block, parts.fp8_cache
        self.q_proj = parts.linear("q_proj")
        self.k_proj = parts.linear("k_proj")
        self.v_proj = parts.linear("v_proj")
        self.o_proj = parts.linear("o_proj", to_residual=True)
        self.q_norm = parts.norm("q_norm") if block.qk_norm == "head" else nn.Identity()
        self.k_norm = parts.norm("k_norm") if block.qk_norm == "head" else nn.Identity()
        self.sinks = parts.filled("sinks", 0.0) if block.sinks else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._read(*self._qkv(x_BTD, first=0))

    def prefill(self, x_BTD: Tensor) -> tuple[Tensor, KvCache]:
        q_BTHK, k_BTGK, v_BTGK = self._qkv(x_BTD, first=0)
        window, fp8 = self.block.window, self.fp8_cache
        k, v = (TokenCache(x, window=window, fp8=fp8) for x in (k_BTGK, v_BTGK))
        return self._read(q_BTHK, k_BTGK, v_BTGK), KvCache(k=k, v=v)

    def step(self, x_BTD: Tensor, cache: KvCache) -> Tensor:
        q_BTHK, k_BTGK, v_BTGK = self._qkv(x_BTD, first=cache.k.length)
        cache.k.append(k_BTGK)
        cache.v.append(v_BTGK)
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, cache.k.read(), cache.v.read()))
        o_BHTK = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        if self.sinks is not None:  # one more term in the denominator
            q_BGRK = q.squeeze(2).unflatten(1, (self.block.kv_heads, -1))
            logits_BGRT = (q_BGRK @ k.mT).to(self.sinks.dtype) * self.block.head_dim**-0.5
            kept_BH = (logits_BGRT.logsumexp(-1).flatten(1) - self.sinks).sigmoid()
            o_BHTK = o_BHTK * kept_BH[..., None, None].to(o_BHTK.dtype)
        return self.o_proj(o_BHTK.transpose(1, 2).flatten(-2))

    def _qkv(self, x_BTD: Tensor, *, first: int) -> tuple[Tensor, Tensor, Tensor]:
        heads, rope = (-1, self.block.head_dim), self.block.rope
        q_BTHK = self.q_norm(self.q_proj(x_BTD).unflatten(-1, heads))
        k_BTGK = self.k_norm(self.k_proj(x_BTD).unflatten(-1, heads))
        if rope is not None:
            q_BTHK, k_BTGK = (
                rotate(x, first=first, rotated=self.block.rotated, theta=rope.theta)
                for x in (q_BTHK, k_BTGK)
            )
        return q_BTHK, k_BTGK, self.v_proj(x_BTD).unflatten(-1, heads)

    def _read(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
        if self.fp8_cache:
            k_BTGK, v_BTGK = quantised(k_BTGK, ROW), quantised(v_BTGK, ROW)
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
        o_BHTK = attend(q, k, v, window=self.block.window, sinks=self.sinks)
        return self.o_proj(o_BHTK.transpose(1, 2).flatten(-2))


def attend(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, *, window: int | None, sinks: Tensor | None
) -> Tensor:
    """o_BHTK: causal softmax attention over the last `window` tokens, or all of them.

    A sink is a key of its own without a value. It lies in an extra dimension, where all other keys
    are zero and a query carries the sink of its head; so every kernel of PyTorch can run it.
    """
    (T, K), q, k, v = q_BHTK.shape[-2:], q_BHTK, k_BGTK, v_BGTK
    if sinks is not None:
        extra = (sinks * K**0.5).to(q.dtype)[:, None, None].expand(*q.shape[:-1], 1)
        q, k, v = torch.cat([q, extra], -1), F.pad(k, (0, 1)), F.pad(v, (0, 1))
    if window is not None and window < T:
        return _banded(q, k, v, window, K**-0.5, sink=sinks is not None)[..., :K]
    if sinks is not None:
        q, k, v = (F.pad(x, (0, 0, 1, 0)) for x in (q, k, v))  # the sink is the zeroth token
        k[..., 0, -1] = 1
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=K**-0.5)
    return o[..., -T:, :K]


def _banded(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, scale: float, *, sink: bool
) -> Tensor:
    """Block by block, each against itself and the one before: the work grows with T, not T^2."""
    B, H, T, _ = q_BHTK.shape
    C = max(window, SMALLEST_BLOCK)
    # beside a mask, no fused CUDA kernel lets query heads share a key head
    k_BHTK, v_BHTK = (x.repeat_interleave(H // x.shape[1], 1) for x in (k_BGTK, v_BGTK))

    def blocks(x_BHTK: Tensor) -> Tensor:  # N first and B with the heads: all of B share a mask
        x = F.pad(x_BHTK, (0, 0, 0, -T % C))
        return x.flatten(0, 1).unflatten(1, (-1, C)).transpose(0, 1)

    def with_previous(x_NHCK: Tensor) -> Tensor:
        return torch.cat([F.pad(x_NHCK[:-1], (0, 0, 0, 0, 0, 0, 1, 0)), x_NHCK], 2)

    q, k, v = blocks(q_BHTK), with_previous(blocks(k_BHTK)), with_previous(blocks(v_BHTK))
    query = torch.arange(C, device=q.device)[:, None]
    key = torch.arange(-C, C, device=q.device)
    mask = ((key <= query) & (key > query - window)).repeat(len(q), 1, 1, 1)
    mask[0, ..., :C] = False  # nothing comes before the first block
    if sink:  # in the place of the one key that no window of a block reaches
        mask[..., 0], k[:, :, 0], k[:, :, 0, -1], v[:, :, 0] = True, 0, 1, 0
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return o.transpose(0, 1).flatten(1, 2).unflatten(0, (B, -1))[:, :, :T]
