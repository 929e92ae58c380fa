"""Operator calls: what a forward pass asks of a device, each with its work by formula.

A call is hashable plain data, so that a pass becomes a counted multiset and a timing finds its call
again. One multiply-add is two FLOPs; `bytes` is what must move to and from memory at least.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import ClassVar, Literal

NumberFormat = Literal["bf16", "fp8", "int8", "fp4"]
BYTES_OF: dict[NumberFormat, float] = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.53125}
ACTIVATION_BYTES, STATE_BYTES = 2, 4
CHUNK = 64  # tokens that a chunked recurrence handles at once
FULL_TILE = 128  # rows that fill a tensor-core tile


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one forward pass handles: `batch` sequences, `tokens` new ones each, ending at
    `context`."""

    batch: int
    tokens: int
    context: int

    @property
    def decode(self) -> bool:
        return self.tokens == 1

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


def visible(context: int, window: int | None) -> int:
    """How many cached positions the token at the end of `context` sees."""
    return context if window is None else min(context, window)


def mean_visible(tokens: int, window: int | None) -> float:
    """The same, averaged over the tokens of a causal prefill."""
    if window is None or window >= tokens:
        return (tokens + 1) / 2
    return window - window * (window - 1) / (2 * tokens)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One call; subclasses say what its size means and give the formulas of its work."""

    name: ClassVar[str]

    @property
    def flops(self) -> float:
        raise NotImplementedError

    @property
    def bytes(self) -> float:
        raise NotImplementedError

    @property
    def format(self) -> NumberFormat:
        """The number format of its products."""
        return "bf16"

    @property
    def family(self) -> str:
        """Operators of one family share the cost model's constants."""
        return self.name if self.format == "bf16" else f"{self.name}_{self.format}"

    @property
    def serial_steps(self) -> int:
        """Steps that must follow each other, where the work of one cannot hide another's
        latency."""
        return 0

    @property
    def lanes(self) -> int:
        """How many such sequences of steps run side by side."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Gemm(Operator):
    """[m, k] x [k, n]: `m` tokens through a weight of `n` outputs and `k` inputs."""

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
    """Causal softmax attention of whole sequences; `window` also bounds what a selection reads."""

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
        a_token = (self.kv_heads * BYTES_OF[self.kv] + self.heads * ACTIVATION_BYTES) * width
        return self.batch * self.tokens * a_token


@dataclass(frozen=True, kw_only=True)
class AttentionDecode(Operator):
    """One query a sequence against `context` cached positions.

    `window` names the kernel of a windowed layer; `context` is what is read within it.
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
    """Attention of whole sequences on keys and values expanded from the latent."""

    name = "mla_prefill"
    batch: int
    tokens: int
    heads: int
    qk_head_dim: int
    v_head_dim: int
    window: int | None = None
    kv: NumberFormat = "bf16"  # of the latent cache that is filled along the way

    @property
    def flops(self) -> float:
        seen = mean_visible(self.tokens, self.window)
        pairs = self.batch * self.tokens * seen
        return 2.0 * pairs * self.heads * (self.qk_head_dim + self.v_head_dim)

    @property
    def bytes(self) -> float:
        per_head = 2 * (self.qk_head_dim + self.v_head_dim)
        return 1.0 * self.batch * self.tokens * self.heads * per_head * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class MLADecode(Operator):
    """Absorbed: the latent of `kv_lora_rank` is key and value of every head."""

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
class IndexScores(Operator):
    """Each of `rows` queries of `heads` x `head_dim` scored against `keys` shared index keys."""

    name = "index_scores"
    batch: int
    rows: int  # of one sequence
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
    """A chunked linear recurrence over whole sequences: `heads` states of `k_dim` x `v_dim`.

    `delta` has the correction of the delta rule; `writes` is how often a token writes the state.
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
            a_head = CHUNK * (3 * k + 2 * v) + CHUNK**2 / 3 + 6 * k * v
        else:
            a_head = CHUNK * (k + v) + 4 * k * v
        return 1.0 * self.batch * self.tokens * self.heads * a_head * self.writes

    @property
    def bytes(self) -> float:
        a_token = 2 * self.k_heads * self.k_dim + 2 * self.heads * self.v_dim
        states = 2 * self.batch * self.heads * self.k_dim * self.v_dim * STATE_BYTES
        return 1.0 * self.batch * self.tokens * a_token * ACTIVATION_BYTES + states

    @property
    def serial_steps(self) -> int:
        return ceil(self.tokens / CHUNK)

    @property
    def lanes(self) -> int:
        return self.batch * self.heads


@dataclass(frozen=True, kw_only=True)
class RecurrentStep(Operator):
    """One token of such a recurrence: every state is read and written once."""

    name = "recurrent_step"
    batch: int
    heads: int
    k_dim: int
    v_dim: int
    delta: bool = False
    writes: int = 1

    @property
    def flops(self) -> float:
        an_element = 4 + 2 * self.writes + (2 if self.delta else 0)
        return 1.0 * self.batch * self.heads * self.k_dim * self.v_dim * an_element

    @property
    def bytes(self) -> float:
        return 2.0 * self.batch * self.heads * self.k_dim * self.v_dim * STATE_BYTES


@dataclass(frozen=True, kw_only=True)
class ChannelScan(Operator):
    """A recurrence without products between channels: `channels` of `states` numbers each."""

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
        a_token = (3 * self.channels + 2 * self.states) * ACTIVATION_BYTES
        states = 2 * self.channels * self.states * STATE_BYTES
        return 1.0 * self.batch * (self.tokens * a_token + states)

    @property
    def serial_steps(self) -> int:
        return ceil(self.tokens / CHUNK)

    @property
    def lanes(self) -> int:
        return ceil(self.batch * self.channels / FULL_TILE)


@dataclass(frozen=True, kw_only=True)
class Conv(Operator):
    """A causal depthwise convolution over whole sequences of `channels`."""

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
    """One token of it: the tail of `width - 1` tokens is read and written."""

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
def _met(rows: int, top_k: int, n_experts: int, skew: float) -> float:
    if not skew:
        return n_experts * (1 - (1 - top_k / n_experts) ** rows)
    top, power = max(0.8 * rows, 1.0), 1 - skew or 1e-6
    spots = ((i + 0.5) / n_experts for i in range(n_experts))
    loads = [(1 + (top**power - 1) * spot) ** (1 / power) for spot in spots]
    scale = top_k / sum(loads)
    chosen = (min(1.0, scale * load) for load in loads)
    return sum(1 - (1 - share) ** rows for share in chosen)


@dataclass(frozen=True, kw_only=True)
class Experts(Operator):
    """All routed experts of a layer for `rows` tokens: `matrices` products, activation, sum.

    Rows that choose independently meet E (1 - (1 - k/E)^rows) experts, whose weights are read. With
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
    def met(self) -> float:
        """How many experts at least one row chooses, on average."""
        return _met(self.rows, self.top_k, self.n_experts, self.skew)

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.top_k * self.matrices * self.width * self.d_expert

    @property
    def bytes(self) -> float:
        an_expert = self.matrices * self.width * self.d_expert * BYTES_OF[self.weights]
        return self.met * an_expert + 4.0 * self.rows * self.width * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class Rows(Operator):
    """A bandwidth-bound pass that reads and writes `elements` activations of each row."""

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
class Waiting(Operator):
    """`steps` small products that follow each other, each reading its weights anew; the work of the
    products themselves is a Gemm's."""

    name = "waiting"
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
