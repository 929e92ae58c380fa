"""Cases of benchmarks/kernels.py: operators at a shape, beside their peers, with a goal."""

# B batch, T tokens, H heads, G key/value heads, K key width, V value width, M, N, K of a product,
# E experts, D model width, F hidden width of an expert

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from archfront.kernels.attention import cache as pages
from archfront.kernels.attention import op as attention
from archfront.kernels.experts import op as experts
from archfront.kernels.recurrent import op as recurrent
from archfront.kernels.rows import op as rows
from archfront.kernels.rows import reference
from archfront.kernels.scaled import op as scaled
from archfront.kernels.scaled.reference import SQUARE, STRIP
from archfront.kernels.scaled.reference import quantize as reference_quantize

OURS = "archfront"
OWN = (OURS, "scalar decay", "bf16 pages", "int8 pages")  # these must run, a peer may not
BF16 = torch.bfloat16
EPS = 1e-6
PER_S = {"GB/s": 1e9, "TFLOP/s": 1e12, "Mtoken/s": 1e6}

Outputs = Tensor | tuple[Tensor, ...]
Unit = Literal["GB/s", "TFLOP/s", "Mtoken/s", "ms"]


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One implementation: `run(*inputs())`. Inputs are drawn again for each, one seed for all."""

    run: Callable[..., Outputs]
    inputs: Callable[[], list[Any]]
    amount: float = 0.0  # bytes, FLOPs or tokens of a call; of none where the unit is ms


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on our value, by the values of all implementations and the bandwidth of a copy."""

    description: str
    reached: Callable[
        [Mapping[str, float], float], bool
    ]  # of all implementations' values, the copy's GB/s


@dataclass(frozen=True, kw_only=True)
class Case:
    """Implementations run beside each other, ours first."""

    operator: str
    direction: Literal["forward", "backward"]
    shape: str
    unit: Unit
    implementations: Mapping[str, Implementation]
    goal: Goal

    def value(self, implementation: Implementation, seconds: float) -> float:
        """The value in `unit` of a call that took `seconds`."""
        return (
            1e3 * seconds
            if self.unit == "ms"
            else implementation.amount / seconds / PER_S[self.unit]
        )


def cases() -> Iterator[Case]:
    """All cases."""
    yield from row_cases()
    yield from flash_cases()
    yield from recurrent_cases()
    yield from decode_cases()
    yield from scaled_cases()
    yield mixture_case()


def at_least(value: float) -> Goal:
    """At least `value`."""
    return Goal(description=f">= {value:g}", reached=lambda values, _: values[OURS] >= value)


def fraction_of_copy(fraction: float) -> Goal:
    """At least this fraction of the bandwidth of a copy."""
    return Goal(
        description=f">= {fraction:.0%} of copy",
        reached=lambda values, copy: values[OURS] >= fraction * copy,
    )


def times_of(other: str, most: float) -> Goal:
    """At most `most` times the value of another implementation."""
    return Goal(
        description=f"<= {most:g} x {other}",
        reached=lambda values, _: values[OURS] <= most * values[other],
    )


def implementations(
    inputs: Callable[[], list[Any]], amount: float, **named: Callable[..., Outputs]
) -> dict[str, Implementation]:
    """Implementations that take the same inputs, so that their outputs are comparable."""
    return {
        name: Implementation(run=run, inputs=inputs, amount=amount) for name, run in named.items()
    }


def peer(package: str, module: str, name: str) -> dict[str, Callable[..., Outputs]]:
    """{"fla 0.6.0": function} where the package is installed."""
    if not find_spec(module.split(".")[0]):
        return {}
    from importlib import import_module

    return {f"{package} {version(package)}": getattr(import_module(module), name)}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call: torch.compile takes seconds to import."""
    made = cache(lambda: torch.compile(function, dynamic=False))
    return lambda *inputs, **settings: made()(*inputs, **settings)


def randn(*shape: int) -> Tensor:
    """Normal random numbers in bfloat16."""
    return torch.randn(shape, dtype=BF16)


ROW_SHAPES = ((65_536, 128), (16_384, 2048), (16_384, 4096), (8192, 8192))
HIDDEN_SHAPES = ((65_536, 768), (16_384, 5632), (16_384, 14_336))
# operator -> shapes, inputs of [rows, width], matrices moved by the forward and by the backward
ROWS = {
    "rms_norm": (ROW_SHAPES, 1, {"forward": 2, "backward": 3}),
    "add_rms_norm": (ROW_SHAPES, 2, {"forward": 4, "backward": 4}),
    "swiglu": (HIDDEN_SHAPES, 2, {"forward": 3, "backward": 5}),
}


def row_cases() -> Iterator[Case]:
    """Norms and SwiGLU, by bandwidth."""
    for operator, (shapes, matrices, moved) in ROWS.items():
        settings = {} if operator == "swiglu" else {"eps": EPS}
        plain = partial(getattr(reference, operator), **settings)
        named = {
            OURS: partial(getattr(rows, operator), **settings, backend="triton"),
            "torch eager": plain,
            "torch.compile": compiled(plain),
            **liger(operator),
        }
        for shape in shapes:

            def inputs(
                shape: tuple[int, int] = shape,
                matrices: int = matrices,
                weighted: bool = operator != "swiglu",
            ) -> list[Tensor]:
                weight = [randn(shape[1])] if weighted else []
                return [*(randn(*shape) for _ in range(matrices)), *weight]

            for direction in ("forward", "backward"):
                yield Case(
                    operator=operator,
                    direction=direction,
                    shape=f"{shape[0]} x {shape[1]}",
                    unit="GB/s",
                    implementations=implementations(
                        inputs, 2 * moved[direction] * prod(shape), **named
                    ),
                    goal=fraction_of_copy(0.85),
                )


def liger(operator: str) -> dict[str, Callable[..., Outputs]]:
    """Liger Kernel's function, where the package is installed."""
    if not find_spec("liger_kernel"):
        return {}
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    # no offset, all in float32 as in the reference, gradients in memory of their own
    settings = (EPS, 0.0, "gemma", False)
    run = {
        "rms_norm": lambda x, w: LigerRMSNormFunction.apply(x, w, *settings),
        "add_rms_norm": lambda x, r, w: LigerFusedAddRMSNormFunction.apply(x, r, w, *settings),
        "swiglu": LigerSiLUMulFunction.apply,
    }[operator]
    return {f"liger {version('liger-kernel')}": run}


def flash_cases(B: int = 4, T: int = 8192, H: int = 16, K: int = 128) -> Iterator[Case]:
    """Causal; the goals are those of one H200."""
    named = {
        OURS: partial(attention.attend_without_lse, backend="triton"),
        "SDPA FLASH": partial(sdpa, SDPBackend.FLASH_ATTENTION),
        "SDPA CUDNN": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
        "FlexAttention": flex,
    }
    flops = 2 * B * H * T * T * K
    for direction, amount, goal in (("forward", flops, 430), ("backward", 2.5 * flops, 300)):
        yield Case(
            operator="attend",
            direction=direction,
            shape=f"{B} x {T} x {H} x {K} causal",
            unit="TFLOP/s",
            implementations=implementations(
                lambda: [randn(B, T, H, K) for _ in range(3)], amount, **named
            ),
            goal=at_least(goal),
        )


def sdpa(backend: SDPBackend, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
    """Causal scaled dot-product attention by one of torch's backends."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


compiled_flex = compiled(flex_attention)


@cache
def causal_blocks(T: int) -> Any:
    """FlexAttention's causal block mask."""
    return create_block_mask(lambda b, h, q, k: q >= k, None, None, T, T)


def flex(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
    """Causal FlexAttention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    mask = causal_blocks(q.shape[2])
    return compiled_flex(q, k, v, block_mask=mask).transpose(1, 2)


def recurrent_cases(T: int = 8192) -> Iterator[Case]:
    """fla shares key heads in the gated delta rule alone: elsewhere they are repeated."""
    delta_shape = {"T": T, "G": 16, "H": 64, "K": 128, "V": 128}
    yield Case(
        operator="gated deltanet",
        direction="forward",
        shape=f"1 x {T}, 16 and 64 heads, 128 x 128",
        unit="ms",
        implementations=implementations(
            partial(sequences, **delta_shape, channels=False, delta=True),
            0.0,
            **{OURS: our_recurrence, **fla("gated_delta_rule", "chunk_gated_delta_rule")},
        ),
        goal=Goal(description="<= 0.5", reached=lambda values, _: values[OURS] <= 0.5),
    )
    one_key = partial(sequences, B=4, T=T, G=1, H=80, K=128, V=64, channels=False, delta=False)
    yield Case(
        operator="mamba-2",
        direction="forward",
        shape=f"4 x {T}, 80 heads, 128 x 64",
        unit="Mtoken/s",
        implementations={OURS: Implementation(run=our_recurrence, inputs=one_key, amount=4 * T)}
        | implementations(
            lambda: repeat_key_heads(*one_key()), 4 * T, **fla("simple_gla", "chunk_simple_gla")
        ),
        goal=at_least(40),
    )
    for operator, delta, name in (("kda", True, "chunk_kda"), ("gla", False, "chunk_gla")):
        square = {"T": T, "G": 32, "H": 32, "K": 128, "V": 128, "delta": delta}
        by_channel = partial(sequences, **square, channels=True)
        yield Case(
            operator=operator,
            direction="forward",
            shape=f"1 x {T}, 32 heads, 128 x 128",
            unit="ms",
            implementations=implementations(
                by_channel, 0.0, **{OURS: our_recurrence, **fla(operator, name)}
            )
            | {
                "scalar decay": Implementation(
                    run=our_recurrence, inputs=partial(sequences, **square, channels=False)
                )
            },
            goal=times_of("scalar decay", 1.4),
        )


def sequences(
    *, T: int, G: int, H: int, K: int, V: int, channels: bool, delta: bool, B: int = 1
) -> list[Tensor]:
    """q, k of unit length, v, decay, and with the delta rule beta."""
    q, k = (F.normalize(torch.randn(B, T, G, K), dim=-1).to(BF16) for _ in range(2))
    decay = F.logsigmoid(torch.randn(B, T, H, K) if channels else torch.randn(B, T, H)) / 16
    return [q, k, randn(B, T, H, V), decay, *([torch.rand(B, T, H)] if delta else [])]


def repeat_key_heads(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> list[Tensor]:
    """The inputs with as many key heads as value heads."""
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    return [q, k, v, *gates]


def our_recurrence(*inputs: Tensor) -> Outputs:
    """The Triton recurrence, its output scaled by K^-1/2 as fla's."""
    return recurrent.linear_recurrence(*inputs, scale=inputs[0].shape[-1] ** -0.5, backend="triton")


def fla(folder: str, name: str) -> dict[str, Callable[..., Outputs]]:
    """A chunk function of fla, where the package is installed."""

    def with_names(function: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        q, k, v, decay, *beta = inputs
        named = {"beta": beta[0].to(v.dtype)} if beta else {}
        scale = q.shape[-1] ** -0.5
        return function(q=q, k=k, v=v, g=decay, scale=scale, **named)

    found = peer("fla-core", f"fla.ops.{folder}", name)
    return {said: partial(with_names, function) for said, function in found.items()}


def decode_cases(
    B: int = 64, T: int = 8192, H: int = 32, G: int = 8, K: int = 128
) -> Iterator[Case]:
    """Decoding over a paged cache in bfloat16 and int8."""
    ours = partial(attention.attend_cached, backend="triton")
    shape = f"{B} x {T}, {H} and {G} heads, {K}"
    in_bf16 = partial(held, B, T, H, G, K, BF16)
    in_int8 = partial(held, B, T, H, G, K, torch.int8)
    bf16_bytes, int8_bytes = 4 * B * T * G * K, 2 * B * T * G * (K + 4)
    yield Case(
        operator="decode",
        direction="forward",
        shape=shape,
        unit="GB/s",
        implementations={
            **implementations(
                in_bf16, bf16_bytes, **{OURS: ours, "SDPA": dense, "FlexAttention": flex_dense}
            ),
            "int8 pages": Implementation(run=ours, inputs=in_int8, amount=int8_bytes),
        },
        goal=fraction_of_copy(0.75),
    )
    yield Case(
        operator="decode int8",
        direction="forward",
        shape=shape,
        unit="ms",
        implementations={
            OURS: Implementation(run=ours, inputs=in_int8),
            "bf16 pages": Implementation(run=ours, inputs=in_bf16),
        },
        goal=times_of("bf16 pages", 1 / 1.6),
    )


def held(B: int, T: int, H: int, G: int, K: int, dtype: torch.dtype) -> list[Any]:
    """A query and a full cache."""
    device = torch.get_default_device()
    cached = pages.allocate(
        batch=B, tokens=T, kv_heads=G, k_dim=K, v_dim=K, dtype=dtype, device=device
    )
    pages.append(cached, randn(B, T, G, K), randn(B, T, G, K))
    return [randn(B, 1, H, K), cached]


def in_order(q_BQHK: Tensor, cached: pages.PagedCache) -> list[Tensor]:
    """In the layout of the peers: pages of a new cache are in order, so nothing is copied."""
    B = len(q_BQHK)
    assert cached.v_pages is not None
    k, v = (x.view(B, -1, *x.shape[2:]).transpose(1, 2) for x in (cached.k_pages, cached.v_pages))
    return [q_BQHK.transpose(1, 2), k, v]


def dense(q_BQHK: Tensor, cached: pages.PagedCache) -> Tensor:
    """Scaled dot-product attention over the same keys and values without pages."""
    heads = in_order(q_BQHK, cached)
    return F.scaled_dot_product_attention(*heads, enable_gqa=True).transpose(1, 2)


def flex_dense(q_BQHK: Tensor, cached: pages.PagedCache) -> Tensor:
    """FlexAttention over the same keys and values without pages."""
    return compiled_flex(*in_order(q_BQHK, cached), enable_gqa=True).transpose(1, 2)


def scaled_cases(M: int = 8192, N: int = 8192, K: int = 8192) -> Iterator[Case]:
    """Products of FP8 matrices with scales per 1 x 128 and per 128 x 128."""

    def factors() -> list[Tensor]:
        a, b = scaled.quantize(randn(M, K), STRIP), scaled.quantize(randn(N, K), SQUARE)
        return [*a, *b]

    flops = 2 * M * N * K
    yield Case(
        operator="scaled_matmul",
        direction="forward",
        shape=f"{M} x {N} x {K}",
        unit="TFLOP/s",
        implementations={
            **implementations(
                factors,
                flops,
                **{
                    OURS: partial(scaled.scaled_matmul, out_dtype=BF16, backend="triton"),
                    "F.scaled_mm": torch_scaled,
                },
            ),
            "bf16 matmul": Implementation(
                run=F.linear, inputs=lambda: [randn(M, K), randn(N, K)], amount=flops
            ),
        },
        goal=at_least(800),
    )
    for name, tile in (("strips", STRIP), ("squares", SQUARE)):
        plain = partial(reference_quantize, tile=tile)
        yield Case(
            operator="quantize",
            direction="forward",
            shape=f"{M} x {K} {name}",
            unit="GB/s",
            implementations=implementations(
                lambda: [randn(M, K)],
                M * K * (3 + 4 / prod(size for size in tile if size)),
                **{
                    OURS: partial(scaled.quantize, tile=tile, backend="triton"),
                    "torch.compile": compiled(plain),
                },
            ),
            goal=fraction_of_copy(0.85),
        )


def torch_scaled(a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor) -> Tensor:
    """torch's product of FP8 matrices with block scales."""
    recipe_a = F.ScalingType.BlockWise1x128
    recipe_b = F.ScalingType.BlockWise128x128
    return F.scaled_mm(a_MK, b_NK.T, a_scales, recipe_a, b_scales.contiguous().T, recipe_b)


def mixture_case(N: int = 16_384, E: int = 128, K: int = 8, D: int = 2048, F: int = 768) -> Case:
    """A routed feed-forward, forward."""

    def inputs() -> list[Tensor]:
        chosen = torch.rand(N, E).topk(K).indices
        weights = (randn(E, F, D), randn(E, F, D), randn(E, D, F))
        return [randn(N, D), chosen, torch.rand(N, K).to(BF16), *(w / 32 for w in weights)]

    return Case(
        operator="mixture",
        direction="forward",
        shape=f"{N} tokens, {K} of {E} experts, {D} x {F}",
        unit="TFLOP/s",
        implementations=implementations(
            inputs,
            6 * N * K * D * F,
            **{
                OURS: partial(experts.mixture, activation="silu", backend="triton"),
                "F.grouped_mm": torch_mixture,
            },
        ),
        goal=at_least(350),
    )


def torch_mixture(
    x_ND: Tensor,
    chosen_NK: Tensor,
    topk_weights_NK: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
) -> Tensor:
    """The mixture by torch's grouped GEMM."""
    expert_M = chosen_NK.flatten()
    order_M = expert_M.argsort(stable=True)
    token_M = order_M // chosen_NK.shape[1]
    ends_E = expert_M.bincount(minlength=len(up_EFD)).cumsum(0).int()
    x_MD = x_ND[token_M]
    gate_MF, up_MF = (F.grouped_mm(x_MD, w.mT, offs=ends_E) for w in (gate_EFD, up_EFD))
    y_MD = F.grouped_mm(F.silu(gate_MF) * up_MF, down_EDF.mT, offs=ends_E)
    shared_MD = y_MD * topk_weights_NK.flatten()[order_M, None]
    return torch.zeros_like(x_ND).index_add_(0, token_M, shared_MD)
