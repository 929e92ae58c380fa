"""Operator calls that a model makes, recorded at the public API of kernels, beside those priced.

Both sides become the same plain tuples, so that a call is compared by its operator and sizes. What
the model computes outside of kernels' operators is counted as matrix-product FLOPs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archfront.kernels.attention import op as attention
from archfront.kernels.experts import op as experts
from archfront.kernels.recurrent import op as recurrent
from archfront.kernels.rows import op as rows
from archfront.kernels.scaled import op as scaled
from archfront.search_space import operators as ops

Call = tuple[Any, ...]
aten = torch.ops.aten


class Recorded:
    """Calls of kernels' operators, fused residual norms, and FLOPs of products outside kernels."""

    def __init__(self) -> None:
        self.calls: Counter[Call] = Counter()
        self.residual_norms: Counter[tuple[int, int]] = Counter()  # (rows, width)
        self.expert_flops = 0.0
        self.product_flops = 0.0
        self.depth = 0  # of recorded functions that call each other


def _attend(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, **_: Any) -> Call:
    B, T, H, K = q.shape
    window = window if window is not None and window < T else None
    return "attend", B, T, H, k.shape[2], K, v.shape[-1], window


def _attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, *, block: int, **_: Any
) -> Call:
    return _attend(q, k, v, window=blocks.shape[-1] * block)


def _attend_cached(q: Tensor, cache: Any, **_: Any) -> Call:
    B, _, H, K = q.shape
    return "attend_cached", B, H, cache.k_pages.shape[2], K, cache.v_dim


def _attend_selected(q: Tensor, k: Tensor, index: Tensor, *, v_dim: int, **_: Any) -> Call:
    B, T, H, K = q.shape
    return "attend_selected", B, T, H, K, v_dim, index.shape[-1]


def _index_scores(q: Tensor, k: Tensor, weight: Tensor) -> Call:
    B, T, I, K = q.shape
    return "index_scores", B, T, k.shape[1], I, K


def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, decay: Any, beta: Any = None, *a: Any, **b: Any
) -> Call:
    (B, T, G, K), (H, V) = q.shape, v.shape[2:]
    return "scan", B, T, G, H, K, V, beta is not None, 1


def _recurrence_step(
    q: Tensor, k: Tensor, v: Tensor, decay: Any, beta: Any, *a: Any, **b: Any
) -> Call:
    return "step", *v.shape[:2], q.shape[-1], v.shape[-1], beta is not None, 1


def _rwkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, *a: Any, **b: Any) -> Call:
    B, T, H, K = r.shape
    return "scan", B, T, H, H, K, v.shape[-1], True, 2


def _rwkv7_step(r: Tensor, w: Tensor, k: Tensor, v: Tensor, *a: Any, **b: Any) -> Call:
    return "step", *v.shape[:2], r.shape[-1], v.shape[-1], True, 2


def _channel_scan(x: Tensor, *a: Any, **b: Any) -> Call:
    return "channel_scan", *x.shape, 1


def _selective_scan(x: Tensor, dt: Tensor, A: Tensor, *a: Any, **b: Any) -> Call:
    return "channel_scan", *x.shape, A.shape[1]


def _conv(x: Tensor, weight: Tensor, *a: Any, **b: Any) -> Call:
    return "conv", *x.shape, weight.shape[1]


def _conv_step(x: Tensor, tail: Tensor, weight: Tensor, *a: Any, **b: Any) -> Call:
    return "conv_step", *x.shape, weight.shape[1]


CALLS: dict[tuple[Any, str], Callable[..., Call]] = {
    (attention, "attend"): _attend,
    (attention, "attend_without_lse"): _attend,
    (attention, "attend_blocks"): _attend_blocks,
    (attention, "attend_cached"): _attend_cached,
    (attention, "attend_selected"): _attend_selected,
    (attention, "index_scores"): _index_scores,
    (recurrent, "linear_recurrence"): _recurrence,
    (recurrent, "linear_recurrence_step"): _recurrence_step,
    (recurrent, "rwkv7_recurrence"): _rwkv7,
    (recurrent, "rwkv7_recurrence_step"): _rwkv7_step,
    (recurrent, "channel_scan"): _channel_scan,
    (recurrent, "selective_scan"): _selective_scan,
    (rows, "short_conv"): _conv,
    (rows, "short_conv_step"): _conv_step,
}


@contextmanager
def recorded(monkeypatch: Any) -> Iterator[Recorded]:
    """Inside, kernels' public functions record their calls and products count their FLOPs."""
    found = Recorded()

    def recording(function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if found.depth == 0:
                note(*args, **kwargs)
            found.depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                found.depth -= 1

        return called

    def note_call(describe: Callable[..., Call]) -> Callable[..., None]:
        def note(*args: Any, **kwargs: Any) -> None:
            found.calls[describe(*args, **kwargs)] += 1

        return note

    def note_mixture(
        x: Tensor,
        chosen: Tensor,
        topk_weights: Tensor,
        gate: Any,
        up: Tensor,
        down: Tensor,
        *a: Any,
        **b: Any,
    ) -> None:
        matrices = sum(w.shape[1] * w.shape[2] for w in (gate, up, down) if w is not None)
        found.expert_flops += 2.0 * chosen.numel() * matrices

    def note_grouped(x: Tensor, weight: Tensor, *a: Any, **b: Any) -> None:
        found.expert_flops += 2.0 * len(x) * weight.shape[1] * weight.shape[2]

    def note_scaled(x: Tensor, weight: Tensor, *a: Any, **b: Any) -> None:
        found.product_flops += 2.0 * x.shape[:-1].numel() * weight.numel()

    def note_residual_norm(x: Tensor, *a: Any, **b: Any) -> None:
        found.residual_norms[x.shape[:-1].numel(), x.shape[-1]] += 1

    notes = {where: note_call(describe) for where, describe in CALLS.items()}
    notes |= {
        (experts, "mixture"): note_mixture,
        (experts, "grouped_linear"): note_grouped,
        (scaled, "scaled_linear"): note_scaled,
        (rows, "add_rms_norm"): note_residual_norm,
    }
    with monkeypatch.context() as patch:
        for (module, name), note in notes.items():
            patch.setattr(module, name, recording(getattr(module, name), note))
        with _Products(found):
            yield found


class _Products(TorchDispatchMode):
    def __init__(self, found: Recorded) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.found.depth == 0:
            packet = func.overloadpacket
            if packet in (aten.mm, aten.bmm):
                self.found.product_flops += 2.0 * args[0].numel() * args[1].shape[-1]
            elif packet is aten.mv:
                self.found.product_flops += 2.0 * args[0].numel()
            elif packet in (aten.addmm, aten.baddbmm):
                self.found.product_flops += 2.0 * args[1].numel() * args[2].shape[-1]
        return func(*args, **(kwargs or {}))


def priced(calls: Counter[Any]) -> Recorded:
    """The calls of profilers/lowering.py as the same tuples."""
    found = Recorded()
    for call, times in calls.items():
        match call:
            case ops.Gemm():
                found.product_flops += times * call.flops
            case ops.Experts():
                found.expert_flops += times * call.flops
            case ops.Rows() | ops.SequentialGemm():
                pass
            case _:
                found.calls[_tuple(call)] += times
    return found


def _tuple(call: Any) -> Call:
    match call:
        case ops.AttentionPrefill(batch=B, tokens=T, heads=H, kv_heads=G, head_dim=K, v_head_dim=V):
            return "attend", B, T, H, G, K, V, call.window
        case ops.MLAPrefill(batch=B, tokens=T, heads=H, qk_head_dim=K, v_head_dim=V):
            return "attend", B, T, H, H, K, V, None
        case ops.AttentionDecode(batch=B, heads=H, kv_heads=G, head_dim=K, v_head_dim=V):
            return "attend_cached", B, H, G, K, V
        case ops.MLADecode(batch=B, heads=H, kv_lora_rank=R, qk_rope_head_dim=P):
            return "attend_cached", B, H, 1, R + P, R
        case ops.SelectedAttention(batch=B, rows=T, heads=H, head_dim=K, v_head_dim=V):
            return "attend_selected", B, T, H, K, V, call.selected
        case ops.IndexScores(batch=B, rows=T, keys=C, heads=I, head_dim=K):
            return "index_scores", B, T, C, I, K
        case ops.Scan(batch=B, tokens=T, k_heads=G, heads=H, k_dim=K, v_dim=V):
            return "scan", B, T, G, H, K, V, call.delta, call.writes
        case ops.RecurrentStep(batch=B, heads=H, k_dim=K, v_dim=V):
            return "step", B, H, K, V, call.delta, call.writes
        case ops.ChannelScan(batch=B, tokens=T, channels=N, states=S):
            return "channel_scan", B, T, N, S
        case ops.Conv(batch=B, tokens=T, channels=N, width=W):
            return "conv", B, T, N, W
        case ops.ConvStep(batch=B, channels=N, width=W):
            return "conv_step", B, N, W
    raise AssertionError(call)
