"""Operator calls of a forward pass, with FLOPs and bytes by formula.

A call is hashable plain data, so that a pass is a multiset of calls, and timings are stored by
call. One multiply-add is two FLOPs; `bytes` is the minimal traffic to and from memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import ClassVar, Literal

NumberFormat = Literal["bf16", "fp8", "int8", "fp4"]
BYTES_OF: dict[NumberFormat, float] = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.53125}
ACTIVATION_BYTES, STATE_BYTES = 2, 4
CHUNK = 64  # tokens per chunk of a recurrence
FULL_TILE = 128  # rows of a tensor-core tile


@dataclass(frozen=True, kw_only=True)
class Point:
    """The size of a forward pass: `batch` sequences of `tokens` new tokens, ending at `context`."""

    batch: int
    tokens: int
    context: int

    @property
    def decode(self) -> bool:
        """Whether it is a decoding step."""
        return self.tokens == 1

    @property
    def rows(self) -> int:
        """New tokens of all sequences."""
        return self.batch * self.tokens


def visible(context: int, window: int | None) -> int:
    """Positions that the last token of `context` attends to."""
    return context if window is None else min(context, window)


def mean_visible(tokens: int, window: int | None) -> float:
    """Positions that a token attends to, averaged over a causal prefill."""
    if window is None or window >= tokens:
        return (tokens + 1) / 2
    return window - window * (window - 1) / (2 * tokens)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator call: a subclass has its sizes and the formulas of its work."""

    name: ClassVar[str]

    @property
    def flops(self) -> float:
        """Floating-point operations of its products."""
        raise NotImplementedError

    @property
    def bytes(self) -> float:
        """Bytes moved at least."""
        raise NotImplementedError

    @property
    def format(self) -> NumberFormat:
        """The number format of its products."""
        return "bf16"

    @property
    def family(self) -> str:
        """The family whose constants the cost model uses."""
        return self.name if self.format == "bf16" else f"{self.name}_{self.format}"

    @property
    def serial_steps(self) -> int:
        """Dependent steps, whose latencies add up."""
        return 0

    @property
    def lanes(self) -> int:
        """Independent sequences of such steps."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Gemm(Operator):
    """Matrix product [m, k] x [k, n] of `m` tokens and a weight with `k` inputs, `n` outputs."""

    name = "gemm"
    m: int
    n: int
    k: int
    weights: NumberFormat = "bf16"

    @property
    def format(self) -> NumberFormat:
        return self.weights

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def bytes(self) -> float:
        activations = self.m * (self.n + self.k) * ACTIVATION_BYTES
        return self.n * self.k * BYTES_OF[self.weights] + activations


@dataclass(frozen=True, kw_only=True)
class AttentionPrefill(Operator):
    """Causal softmax attention of whole sequences; `window` is also the size of a selection."""

    name = "attention_prefill"
    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    kv: NumberFormat = "bf16"

    @property
    def flops(self) -> float:
        seen = mean_visible(self.tokens, self.window)
        pairs = self.batch * self.tokens * seen
        return 2.0 * pairs * self.heads * (self.head_dim + self.v_head_dim)

    @property
    def bytes(self) -> float:
        width = self.head_dim + self.v_head_dim
        per_token = (self.kv_heads * BYTES_OF[self.kv] + self.heads * ACTIVATION_BYTES) * width
        return self.batch * self.tokens * per_token


@dataclass(frozen=True, kw_only=True)
class AttentionDecode(Operator):
    """Softmax attention of one query per sequence to `context` cached positions.

    `window` selects the kernel of windowed layers; `context` is at most the window.
    """

    name = "attention_decode"
    batch: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    kv: NumberFormat = "bf16"

    @property
    def flops(self) -> float:
        width = self.head_dim + self.v_head_dim
        return 2.0 * self.batch * self.context * self.heads * width

    @property
    def bytes(self) -> float:
        width = self.head_dim + self.v_head_dim
        cached = self.batch * self.context * self.kv_heads * width * BYTES_OF[self.kv]
        return cached + self.batch * self.heads * width * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class MLAPrefill(Operator):
    """Multi-head latent attention of whole sequences, in the expanded form."""

    name = "mla_prefill"
    batch: int
    tokens: int
    heads: int
    qk_head_dim: int
    v_head_dim: int
    kv: NumberFormat = "bf16"  # of the latent cache that is filled along the way

    @property
    def flops(self) -> float:
        seen = mean_visible(self.tokens, None)
        pairs = self.batch * self.tokens * seen
        return 2.0 * pairs * self.heads * (self.qk_head_dim + self.v_head_dim)

    @property
    def bytes(self) -> float:
        per_head = 2 * (self.qk_head_dim + self.v_head_dim)
        return 1.0 * self.batch * self.tokens * self.heads * per_head * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class MLADecode(Operator):
    """Multi-head latent attention of one query per sequence, in the absorbed form.

    The latent of `kv_lora_rank` is key and value of every head.
    """

    name = "mla_decode"
    batch: int
    context: int
    heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    kv: NumberFormat = "bf16"

    @property
    def flops(self) -> float:
        width = 2 * self.kv_lora_rank + self.qk_rope_head_dim
        return 2.0 * self.batch * self.context * self.heads * width

    @property
    def bytes(self) -> float:
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        cached = self.batch * self.context * latent * BYTES_OF[self.kv]
        queries = self.batch * self.heads * (latent + self.kv_lora_rank) * ACTIVATION_BYTES
        return cached + queries


@dataclass(frozen=True, kw_only=True)
class SelectedAttention(Operator):
    """Each of `rows` queries of a sequence over `selected` of its `keys`, listed for it.

    One key head serves all `heads`; the leading `v_head_dim` numbers of a key are its value.
    """

    name = "selected_attention"
    batch: int
    rows: int  # of one sequence
    keys: int
    selected: int
    heads: int
    head_dim: int
    v_head_dim: int

    @property
    def flops(self) -> float:
        pairs = self.batch * self.rows * self.selected
        return 2.0 * pairs * self.heads * (self.head_dim + self.v_head_dim)

    @property
    def bytes(self) -> float:
        read = min(self.keys, self.rows * self.selected) * self.head_dim
        queries = self.rows * self.heads * (self.head_dim + self.v_head_dim)
        return 1.0 * self.batch * (read + queries) * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class IndexScores(Operator):
    """Scores of `rows` index queries of `heads` x `head_dim` with `keys` index keys."""

    name = "index_scores"
    batch: int
    rows: int  # per sequence
    keys: int
    heads: int
    head_dim: int

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.rows * self.keys * self.heads * self.head_dim

    @property
    def bytes(self) -> float:
        read = self.keys + self.rows * self.heads
        return 1.0 * self.batch * self.head_dim * read * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class Scan(Operator):
    """Chunked linear recurrence over whole sequences: `heads` states of `k_dim` x `v_dim`.

    `delta`: with the delta rule; `writes`: outer products that a token adds to the state.
    """

    name = "scan"
    batch: int
    tokens: int
    k_heads: int
    heads: int
    k_dim: int
    v_dim: int
    delta: bool = False
    writes: int = 1

    @property
    def flops(self) -> float:
        k, v = self.k_dim, self.v_dim
        if self.delta:
            per_head = CHUNK * (3 * k + 2 * v) + CHUNK**2 / 3 + 6 * k * v
        else:
            per_head = CHUNK * (k + v) + 4 * k * v
        return 1.0 * self.batch * self.tokens * self.heads * per_head * self.writes

    @property
    def bytes(self) -> float:
        per_token = 2 * self.k_heads * self.k_dim + 2 * self.heads * self.v_dim
        states = 2 * self.batch * self.heads * self.k_dim * self.v_dim * STATE_BYTES
        return 1.0 * self.batch * self.tokens * per_token * ACTIVATION_BYTES + states

    @property
    def serial_steps(self) -> int:
        return ceil(self.tokens / CHUNK)

    @property
    def lanes(self) -> int:
        return self.batch * self.heads


@dataclass(frozen=True, kw_only=True)
class RecurrentStep(Operator):
    """One token of a linear recurrence, see `Scan`: every state is read and written once."""

    name = "recurrent_step"
    batch: int
    heads: int
    k_dim: int
    v_dim: int
    delta: bool = False
    writes: int = 1

    @property
    def flops(self) -> float:
        per_element = 4 + 2 * self.writes + (2 if self.delta else 0)
        return 1.0 * self.batch * self.heads * self.k_dim * self.v_dim * per_element

    @property
    def bytes(self) -> float:
        return 2.0 * self.batch * self.heads * self.k_dim * self.v_dim * STATE_BYTES


@dataclass(frozen=True, kw_only=True)
class ChannelScan(Operator):
    """Elementwise recurrence over whole sequences: `channels` of `states` numbers each."""

    name = "channel_scan"
    batch: int
    tokens: int
    channels: int
    states: int

    @property
    def flops(self) -> float:
        return 6.0 * self.batch * self.tokens * self.channels * self.states

    @property
    def bytes(self) -> float:
        per_token = (3 * self.channels + 2 * self.states) * ACTIVATION_BYTES
        states = 2 * self.channels * self.states * STATE_BYTES
        return 1.0 * self.batch * (self.tokens * per_token + states)

    @property
    def serial_steps(self) -> int:
        return ceil(self.tokens / CHUNK)

    @property
    def lanes(self) -> int:
        return ceil(self.batch * self.channels / FULL_TILE)


@dataclass(frozen=True, kw_only=True)
class Conv(Operator):
    """Causal depthwise convolution over whole sequences."""

    name = "conv"
    batch: int
    tokens: int
    channels: int
    width: int

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.tokens * self.channels * self.width

    @property
    def bytes(self) -> float:
        return 2.0 * self.batch * self.tokens * self.channels * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class ConvStep(Operator):
    """One token of a causal convolution: the tail of `width - 1` tokens is read and written."""

    name = "conv_step"
    batch: int
    channels: int
    width: int

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.channels * self.width

    @property
    def bytes(self) -> float:
        return 2.0 * self.batch * self.channels * self.width * ACTIVATION_BYTES


@lru_cache(maxsize=4096)
def _used(rows: int, top_k: int, n_experts: int, skew: float) -> float:
    if not skew:
        return n_experts * (1 - (1 - top_k / n_experts) ** rows)
    top, power = max(0.8 * rows, 1.0), 1 - skew or 1e-6
    quantiles = ((i + 0.5) / n_experts for i in range(n_experts))
    loads = [(1 + (top**power - 1) * q) ** (1 / power) for q in quantiles]
    scale = top_k / sum(loads)
    chosen = (min(1.0, scale * load) for load in loads)
    return sum(1 - (1 - p) ** rows for p in chosen)


@dataclass(frozen=True, kw_only=True)
class Experts(Operator):
    """All routed experts of a layer for `rows` tokens: `matrices` products, activation, sum.

    With independent choices, E (1 - (1 - k/E)^rows) experts are used, whose weights are read. With
    a `skew` the loads of the experts follow a power law x^-skew on [1, 0.8 rows], as in the
    collectors of ai-dynamo/aiconfigurator (helper.py, sample_power_law); 0 is balanced.
    """

    name = "experts"
    rows: int
    width: int
    d_expert: int
    top_k: int
    n_experts: int
    matrices: int = 3
    weights: NumberFormat = "bf16"
    skew: float = 0.0

    @property
    def format(self) -> NumberFormat:
        return self.weights

    @property
    def experts_used(self) -> float:
        """Expected number of experts that at least one row chooses."""
        return _used(self.rows, self.top_k, self.n_experts, self.skew)

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.top_k * self.matrices * self.width * self.d_expert

    @property
    def bytes(self) -> float:
        per_expert = self.matrices * self.width * self.d_expert * BYTES_OF[self.weights]
        return self.experts_used * per_expert + 4.0 * self.rows * self.width * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class Rows(Operator):
    """Bandwidth-bound pass that reads and writes `elements` activations per row."""

    name = "rows"
    rows: int
    elements: int

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def bytes(self) -> float:
        return 1.0 * self.rows * self.elements * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class SequentialGemm(Operator):
    """The latency of `steps` dependent products, each of which reads its weights [n, k] again.

    Their FLOPs are counted by a `Gemm` beside it.
    """

    name = "sequential_gemm"
    steps: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def bytes(self) -> float:
        return 1.0 * self.steps * self.n * self.k * ACTIVATION_BYTES

    @property
    def serial_steps(self) -> int:
        return self.steps


def masked_attention(
    *, batch: int, tokens: int, keys: int, heads: int, kv_heads: int, head_dim: int, v_head_dim: int
) -> Iterator[Operator]:
    """Attention of every query over `keys` keys under a mask, as products outside of a kernel.

    Scores and outputs are products; between them fp32 scores are masked and exponentiated, and
    keys and values are converted to fp32 first.
    """
    rows = batch * tokens * heads
    yield Rows(rows=batch * keys * kv_heads, elements=2 * (head_dim + v_head_dim))
    yield Gemm(m=rows, n=keys, k=head_dim)
    yield Rows(rows=rows, elements=8 * keys)
    yield Gemm(m=rows, n=v_head_dim, k=keys)
