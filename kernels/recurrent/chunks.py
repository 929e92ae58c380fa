"""`linear_recurrence` and `rwkv7_recurrence` as custom operators over the chunk kernels."""

# B batch, T tokens, N chunks, C tokens per chunk, G key heads, H value heads, K key width, V value
# width, P groups of the value heads of a key head, D blocks of the keys

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..configs import arch_of
from ..launch import Launch, require_device, run
from ..requirements import needs_gradient, require
from .bwd_inputs import bwd_inputs
from .bwd_intra import bwd_intra
from .bwd_state import bwd_state
from .configs import (
    CHUNKS,
    MIN_LOG_DECAY_PER_CHANNEL,
    MIN_LOG_DECAY_PER_HEAD,
    MOST_HEADS,
    WIDEST_KEY,
    Kind,
    chunk_of,
    config_for,
    precision_of,
)
from .fwd_intra import fwd_intra
from .fwd_state import fwd_state
from .gate import channel_gate, head_gate
from .requirements import require_rows, require_short, require_whole, row_stride

SMALLEST_BETA = 1e-12  # beta is raised to it: its gradient is found by a division by beta
KERNELS = {
    "head_gate": head_gate,
    "channel_gate": channel_gate,
    "fwd_intra": fwd_intra,
    "fwd_state": fwd_state,
    "bwd_state": bwd_state,
    "bwd_intra": bwd_intra,
    "bwd_inputs": bwd_inputs,
}

Arguments = Mapping[str, Any]  # by the kernels' argument names


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of one call: beta for the delta rule, or e = -a and b for RWKV-7."""

    q_BTGK: Tensor
    k_BTGK: Tensor
    v_BTHV: Tensor
    decay: Tensor | None  # [B, T, H] or [B, T, H, K]
    beta_BTH: Tensor | None
    e_BTHK: Tensor | None
    b_BTHK: Tensor | None
    initial_BHKV: Tensor | None
    segment_ids_BT: Tensor | None
    scale: float
    chunk: int

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """(B, T, N, G, H, K, V)."""
        (B, T, G, K), (H, V) = self.q_BTGK.shape, self.v_BTHV.shape[2:]
        return B, T, triton.cdiv(T, self.chunk), G, H, K, V

    @property
    def has_scalar_decay(self) -> bool:
        """Whether there is one decay per token and head."""
        return self.decay is not None and self.decay.dim() == 3

    @property
    def has_channel_decay(self) -> bool:
        """Whether there is one decay per token, head and key channel."""
        return self.decay is not None and self.decay.dim() == 4

    @property
    def has_delta_rule(self) -> bool:
        """Whether a write is corrected by what the state holds: RWKV-7's too."""
        return self.beta_BTH is not None or self.is_rwkv7

    @property
    def is_rwkv7(self) -> bool:
        """Whether the call is of `rwkv7_recurrence`."""
        return self.e_BTHK is not None

    @property
    def kind(self) -> Kind:
        """The key of configs.py for these decays."""
        return "rwkv7" if self.is_rwkv7 else "channel" if self.has_channel_decay else "head"


class Saved(NamedTuple):
    """Tensors saved by the forward for the backward; those that a case does not have are empty."""

    A_BTHC: Tensor
    A_b_BTHC: Tensor
    P_BTHC: Tensor
    inverse_BTHC: Tensor
    U_BTHV: Tensor
    S_BNHKV: Tensor


class Gradients(NamedTuple):
    """Gradients of the inputs; those that a case does not have are empty."""

    dq_BTGPK: Tensor
    dk_BTGPK: Tensor
    dv_BTHV: Tensor
    ddecay: Tensor  # [D, B, T, H] or [1, B, T, H, K]
    dbeta_BTH: Tensor
    de_BTHK: Tensor
    db_BTHK: Tensor
    dinitial_BHKV: Tensor


def new_outputs(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Empty (o_BTHV, final_BHKV)."""
    B, _, _, _, H, K, V = inputs.sizes
    v_BTHV = inputs.v_BTHV
    return v_BTHV.new_empty(v_BTHV.shape), v_BTHV.new_empty(B, H, K, V, dtype=torch.float32)


def new_saved(inputs: Inputs, save: bool) -> Saved:
    """Empty tensors for the forward; those for the backward alone only with `save`."""
    B, T, N, _, H, K, V = inputs.sizes
    new, pairs, rwkv7 = inputs.v_BTHV.new_empty, (B, T, H, inputs.chunk), inputs.is_rwkv7
    return Saved(
        A_BTHC=new(pairs if inputs.has_delta_rule or inputs.has_channel_decay else 0),
        A_b_BTHC=new(pairs if rwkv7 else 0),
        P_BTHC=new(pairs if rwkv7 else 0),
        inverse_BTHC=new(pairs if inputs.has_delta_rule else 0),
        U_BTHV=new((B, T, H, V) if inputs.has_delta_rule and save else 0),
        S_BNHKV=new((B, N, H, K, V) if save else 0),
    )


def new_gradients(arch: str, inputs: Inputs) -> Gradients:
    """Empty gradients, in partial sums where several programs write one."""
    B, T, _, G, H, K, V = inputs.sizes
    parts = H // G // heads_of(H // G)
    keys = triton.cdiv(
        K, config_for(arch, "bwd_inputs", inputs.kind, inputs.v_BTHV.dtype, K, V).tiles["BK"]
    )
    new, rwkv7 = inputs.v_BTHV.new_empty, inputs.is_rwkv7
    dtype = torch.float32 if parts > 1 else inputs.v_BTHV.dtype
    ddecay_shape = (1, B, T, H, K) if inputs.has_channel_decay else (keys, B, T, H)
    return Gradients(
        dq_BTGPK=new(B, T, G, parts, K, dtype=torch.float32 if rwkv7 else dtype),
        dk_BTGPK=new(B, T, G, parts, K, dtype=dtype),
        dv_BTHV=new(B, T, H, V),
        ddecay=new(0 if inputs.decay is None else ddecay_shape, dtype=torch.float32),
        dbeta_BTH=new((B, T, H) if inputs.beta_BTH is not None else 0, dtype=torch.float32),
        de_BTHK=new((B, T, H, K) if rwkv7 else 0, dtype=torch.float32),
        db_BTHK=new((B, T, H, K) if rwkv7 else 0),
        dinitial_BHKV=new(B, H, K, V, dtype=torch.float32),
    )


def heads_of(sharing: int) -> int:
    """Value heads per program of `bwd_inputs`, of the `sharing` ones that have one key head."""
    return max(heads for heads in range(1, MOST_HEADS + 1) if sharing % heads == 0)


def forward_launches(
    arch: str, inputs: Inputs, o_BTHV: Tensor, final_BHKV: Tensor, saved: Saved, save: bool
) -> dict[str, Launch]:
    """The launches of the forward in order, by kernel name."""
    B, _, N, _, H, _, V = inputs.sizes
    launches, decayed_keys = _gate(arch, inputs)
    arguments = {
        **_shared(inputs),
        "sum_ptr": decayed_keys["sum_ptr"],
        "A_ptr": saved.A_BTHC,
        "A_b_ptr": saved.A_b_BTHC,
        "inverse_ptr": saved.inverse_BTHC,
    }

    def intra_launch(k: Tensor, A: Tensor, P: Tensor, invert: bool) -> Launch:
        ours = {
            **arguments,
            **_keys(inputs),
            "k_ptr": k,
            "k_stride": row_stride(k),
            "A_ptr": A,
            "P_ptr": P,
            "INVERT": invert,
        }
        return _launch(arch, "fwd_intra", inputs, ours, lambda _: (B * N, H))

    if inputs.b_BTHK is not None:
        launches["fwd_intra"] = intra_launch(inputs.k_BTGK, saved.A_BTHC, saved.P_BTHC, False)
        launches["fwd_intra b"] = intra_launch(
            inputs.b_BTHK, saved.A_b_BTHC, saved.inverse_BTHC, True
        )
    elif inputs.has_delta_rule or inputs.has_channel_decay:
        launches["fwd_intra"] = intra_launch(
            inputs.k_BTGK, saved.A_BTHC, saved.inverse_BTHC, inputs.beta_BTH is not None
        )
    ours = {
        **arguments,
        **decayed_keys,
        "v_ptr": inputs.v_BTHV,
        "v_stride": row_stride(inputs.v_BTHV),
        "P_ptr": saved.P_BTHC,
        "initial_ptr": inputs.initial_BHKV,
        "INITIAL": inputs.initial_BHKV is not None,
        "o_ptr": o_BTHV,
        "U_ptr": saved.U_BTHV,
        "S_ptr": saved.S_BNHKV,
        "final_ptr": final_BHKV,
        "SAVE": save,
    }
    launches["fwd_state"] = _launch(
        arch, "fwd_state", inputs, ours, lambda tiles: (B * H, triton.cdiv(V, tiles["BV"]))
    )
    return launches


def backward_launches(
    arch: str, inputs: Inputs, saved: Saved, do_BTHV: Tensor, dfinal_BHKV: Tensor, out: Gradients
) -> dict[str, Launch]:
    """The launches of the backward in order, by kernel name."""
    B, _, N, G, H, K, V = inputs.sizes
    heads = heads_of(H // G)
    launches, decayed_keys = _gate(arch, inputs)
    dA_BTHC, dP_BTHC = (do_BTHV.new_empty(B, inputs.sizes[1], H, inputs.chunk) for _ in range(2))
    Y_BTHV = torch.empty_like(do_BTHV) if inputs.is_rwkv7 else out.dv_BTHV
    arguments = {
        **_shared(inputs),
        "sum_ptr": decayed_keys["sum_ptr"],
        "decay_ptr": inputs.decay,
        "do_ptr": do_BTHV,
        "Y_ptr": Y_BTHV,
        "S_ptr": saved.S_BNHKV,
        "dS_ptr": torch.empty_like(saved.S_BNHKV),
        "dA_ptr": dA_BTHC,
        "dP_ptr": dP_BTHC,
    }
    ours = {
        **arguments,
        **decayed_keys,
        "A_ptr": saved.A_BTHC,
        "A_b_ptr": saved.A_b_BTHC,
        "P_ptr": saved.P_BTHC,
        "inverse_ptr": saved.inverse_BTHC,
        "dfinal_ptr": dfinal_BHKV,
        "dv_ptr": out.dv_BTHV,
        "dinitial_ptr": out.dinitial_BHKV,
    }
    launches["bwd_state"] = _launch(
        arch, "bwd_state", inputs, ours, lambda tiles: (B * H, triton.cdiv(V, tiles["BV"]))
    )

    def add_gradient_launches(name: str, k: Tensor, W: Tensor, dk: Tensor, second: bool) -> None:
        """Launches for the write of values W at keys k."""
        ours = {
            **arguments,
            **_keys(inputs),
            "k_ptr": k,
            "k_stride": row_stride(k),
            "W_ptr": W,
            "W_stride": row_stride(W),
            "dq_ptr": out.dq_BTGPK,
            "de_ptr": out.de_BTHK,
            "dk_ptr": dk,
            "ddecay_ptr": out.ddecay,
            "dbeta_ptr": out.dbeta_BTH,
            "SECOND": second,
            "HEADS": heads,
        }
        launches[f"bwd_intra{name}"] = _launch(
            arch, "bwd_intra", inputs, ours, lambda _: (B * N, H)
        )
        launches[f"bwd_inputs{name}"] = _launch(
            arch,
            "bwd_inputs",
            inputs,
            ours,
            lambda tiles: (B * N, H // heads, triton.cdiv(K, tiles["BK"])),
        )

    W_BTHV = saved.U_BTHV if inputs.beta_BTH is not None else inputs.v_BTHV
    add_gradient_launches("", inputs.k_BTGK, W_BTHV, out.dk_BTGPK, False)
    if inputs.b_BTHK is not None:
        add_gradient_launches(" b", inputs.b_BTHK, saved.U_BTHV, out.db_BTHK, True)
    return launches


def _gate(arch: str, inputs: Inputs) -> tuple[dict[str, Launch], Arguments]:
    """The launch that sums the decays, and the keys that `fwd_state` and `bwd_state` read."""
    B, T, N, _, H, K, _ = inputs.sizes
    keys = _keys(inputs)
    if inputs.decay is None:
        return {}, {**keys, "sum_ptr": None}
    sums = torch.empty_like(inputs.decay)
    ours = {**_shared(inputs), **keys, "decay_ptr": inputs.decay, "sum_ptr": sums}
    if inputs.has_scalar_decay:
        launch = _launch(
            arch, "head_gate", inputs, ours, lambda tiles: (B * N, triton.cdiv(H, tiles["BH"]))
        )
        return {"head_gate": launch}, {**keys, "sum_ptr": sums}
    q, k, e, b = (
        inputs.q_BTGK.new_empty((B, T, H, K) if used else 0)
        for used in (True, True, inputs.has_delta_rule, inputs.is_rwkv7)
    )
    ours = {**ours, "q_in_ptr": q, "k_out_ptr": k, "e_in_ptr": e, "b_out_ptr": b}
    launch = _launch(
        arch, "channel_gate", inputs, ours, lambda tiles: (B * N, H, triton.cdiv(K, tiles["BK"]))
    )
    decayed_keys = {"q_ptr": q, "k_ptr": k, "e_ptr": e, "b_ptr": b, "sum_ptr": sums}
    return {"channel_gate": launch}, {**decayed_keys, "q_stride": H * K, "k_stride": H * K}


def _keys(inputs: Inputs) -> Arguments:
    e = inputs.k_BTGK if inputs.e_BTHK is None else inputs.e_BTHK
    b = inputs.k_BTGK if inputs.b_BTHK is None else inputs.b_BTHK
    return {
        "q_ptr": inputs.q_BTGK,
        "k_ptr": inputs.k_BTGK,
        "e_ptr": e,
        "b_ptr": b,
        "q_stride": row_stride(inputs.q_BTGK),
        "k_stride": row_stride(inputs.k_BTGK),
        "e_stride": row_stride(e),
        "b_stride": row_stride(b),
    }


def _shared(inputs: Inputs) -> Arguments:
    _, T, _, G, H, K, V = inputs.sizes
    return {
        "beta_ptr": inputs.beta_BTH,
        "segment_ids_ptr": inputs.segment_ids_BT,
        "tokens": T,
        "heads": H,
        "scale": inputs.scale,
        "floor": MIN_LOG_DECAY_PER_CHANNEL if inputs.has_channel_decay else MIN_LOG_DECAY_PER_HEAD,
        "USE_SCALAR_DECAY": inputs.has_scalar_decay,
        "USE_CHANNEL_DECAY": inputs.has_channel_decay,
        "USE_DELTA_RULE": inputs.beta_BTH is not None,
        "IS_RWKV7": inputs.is_rwkv7,
        "USE_SEGMENT_IDS": inputs.segment_ids_BT is not None,
        "K": K,
        "V": V,
        "R": H // G,
        "LEVELS": (inputs.chunk // 8).bit_length(),
        "PRECISION": precision_of(inputs.v_BTHV.dtype),
        "C": inputs.chunk,
    }


def _launch(
    arch: str,
    name: str,
    inputs: Inputs,
    arguments: Arguments,
    grid: Callable[[Mapping[str, int]], tuple[int, ...]],
) -> Launch:
    K, V = inputs.sizes[5:]
    config = config_for(arch, name, inputs.kind, inputs.v_BTHV.dtype, K, V)
    arguments = {**arguments, **config.tiles}
    return Launch(
        kernel=KERNELS[name],
        grid=grid(config.tiles),
        arguments={argument: arguments[argument] for argument in KERNELS[name].arg_names},
        warps=config.warps,
        stages=config.stages,
    )


@torch.library.custom_op("archfront::linear_recurrence", mutates_args=())
def linear_recurrence_op(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None,
    beta_BTH: Tensor | None,
    e_BTHK: Tensor | None,
    b_BTHK: Tensor | None,
    initial_BHKV: Tensor | None,
    segment_ids_BT: Tensor | None,
    scale: float,
    chunk: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Custom operator `archfront::linear_recurrence`, differentiable; the caller checks inputs."""
    inputs = _inputs(
        q_BTGK,
        k_BTGK,
        v_BTHV,
        decay,
        beta_BTH,
        e_BTHK,
        b_BTHK,
        initial_BHKV,
        segment_ids_BT,
        scale,
        chunk,
    )
    (o_BTHV, final_BHKV), saved = new_outputs(inputs), new_saved(inputs, save)
    arch = arch_of(v_BTHV.device)
    for launch in forward_launches(arch, inputs, o_BTHV, final_BHKV, saved, save).values():
        run(launch, v_BTHV)
    A_BTHC, A_b_BTHC, P_BTHC, inverse_BTHC, U_BTHV, S_BNHKV = saved
    return o_BTHV, final_BHKV, A_BTHC, A_b_BTHC, P_BTHC, inverse_BTHC, U_BTHV, S_BNHKV


@linear_recurrence_op.register_fake
def _fake_outputs(*arguments: Any) -> tuple[Tensor, ...]:
    *of_call, save = arguments
    inputs = _inputs(*of_call)
    return *new_outputs(inputs), *new_saved(inputs, save)


@torch.library.custom_op("archfront::linear_recurrence_backward", mutates_args=())
def linear_recurrence_backward_op(
    do_BTHV: Tensor,
    dfinal_BHKV: Tensor,
    A_BTHC: Tensor,
    A_b_BTHC: Tensor,
    P_BTHC: Tensor,
    inverse_BTHC: Tensor,
    U_BTHV: Tensor,
    S_BNHKV: Tensor,
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None,
    beta_BTH: Tensor | None,
    e_BTHK: Tensor | None,
    b_BTHK: Tensor | None,
    initial_BHKV: Tensor | None,
    segment_ids_BT: Tensor | None,
    scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `linear_recurrence_op`."""
    inputs = _inputs(
        q_BTGK,
        k_BTGK,
        v_BTHV,
        decay,
        beta_BTH,
        e_BTHK,
        b_BTHK,
        initial_BHKV,
        segment_ids_BT,
        scale,
        chunk,
    )
    saved = Saved(A_BTHC, A_b_BTHC, P_BTHC, inverse_BTHC, U_BTHV, S_BNHKV)
    arch = arch_of(v_BTHV.device)
    out = new_gradients(arch, inputs)
    for launch in backward_launches(arch, inputs, saved, do_BTHV, dfinal_BHKV, out).values():
        run(launch, v_BTHV)
    dtype = v_BTHV.dtype
    return (
        _sum(out.dq_BTGPK, 3).to(dtype),
        _sum(out.dk_BTGPK, 3).to(dtype),
        out.dv_BTHV,
        out.ddecay if decay is None else _sum(out.ddecay, 0),
        out.dbeta_BTH,
        out.de_BTHK.to(dtype),
        out.db_BTHK,
        out.dinitial_BHKV,
    )


@linear_recurrence_backward_op.register_fake
def _fake_gradients(do_BTHV: Tensor, dfinal_BHKV: Tensor, *others: Any) -> tuple[Tensor, ...]:
    q, k, v, decay, beta, e, b, _, _, _, _ = others[len(Saved._fields) :]
    return (
        *(v.new_empty(x.shape) for x in (q, k, v)),
        *(v.new_empty(0 if x is None else x.shape, dtype=torch.float32) for x in (decay, beta)),
        *(v.new_empty(0 if x is None else x.shape) for x in (e, b)),
        torch.empty_like(dfinal_BHKV),
    )


def _inputs(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None,
    beta_BTH: Tensor | None,
    e_BTHK: Tensor | None,
    b_BTHK: Tensor | None,
    initial_BHKV: Tensor | None,
    segment_ids_BT: Tensor | None,
    scale: float,
    chunk: int,
) -> Inputs:
    return Inputs(
        q_BTGK=q_BTGK,
        k_BTGK=k_BTGK,
        v_BTHV=v_BTHV,
        decay=decay,
        beta_BTH=None if beta_BTH is None else beta_BTH.clamp(min=SMALLEST_BETA),
        e_BTHK=e_BTHK,
        b_BTHK=b_BTHK,
        initial_BHKV=initial_BHKV,
        segment_ids_BT=segment_ids_BT,
        scale=scale,
        chunk=chunk,
    )


def _sum(parts: Tensor, dim: int) -> Tensor:
    return parts.squeeze(dim) if parts.shape[dim] == 1 else parts.sum(dim)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.chunk, _ = inputs
    ctx.save_for_backward(*output[2:], *tensors)


def _backward(ctx: Any, do_BTHV: Tensor, dfinal_BHKV: Tensor, *_: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    # autograd may pass an expanded gradient; the kernels' are contiguous
    gradients = linear_recurrence_backward_op(
        do_BTHV.contiguous(), dfinal_BHKV.contiguous(), *saved, ctx.scale, ctx.chunk
    )
    asked = [*saved[len(Saved._fields) :][:8]]
    named = [None if x is None else dx for x, dx in zip(asked, gradients, strict=True)]
    return *named, None, None, None, None


linear_recurrence_op.register_autograd(_backward, setup_context=_save)


def linear_recurrence(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    state_BHKV: Tensor | None,
    *,
    scale: float,
    chunk: int,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.linear_recurrence`. Raises Unsupported."""
    K = _require(q_BTGK, v_BTHV, state_BHKV, chunk, segment_ids)
    (B, T, H, _), G = v_BTHV.shape, q_BTGK.shape[2]
    require(H % G == 0, "the key heads must divide the value heads", G=G, H=H)
    _require_like_v(v_BTHV, (B, T, G, K), q=q_BTGK, k=k_BTGK)
    if decay is not None:
        shapes = ((H,), (B, T, H), (B, T, H, K))
        require(decay.shape in shapes, f"decay must have a shape of {shapes}", decay=decay.shape)
        if decay.dim() == 4 and G < H:
            q_BTGK, k_BTGK = (x.repeat_interleave(H // G, 2) for x in (q_BTGK, k_BTGK))
        decay = (decay.expand(B, T, H) if decay.dim() == 1 else decay).float().contiguous()
    if beta is not None:
        require(beta.shape == (B, T, H), f"beta must be of shape {(B, T, H)}", beta=beta.shape)
        beta = beta.float().contiguous()
    return _run(
        q_BTGK, k_BTGK, v_BTHV, decay, beta, None, None, state_BHKV, segment_ids, scale, chunk
    )


def rwkv7_recurrence(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor | None,
    *,
    chunk: int,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `op.rwkv7_recurrence`. Raises Unsupported."""
    K = _require(r_BTHK, v_BTHV, state_BHKV, chunk, segment_ids)
    shape = (*v_BTHV.shape[:3], K)
    e_BTHK = -a_BTHK
    _require_like_v(v_BTHV, shape, r=r_BTHK, k=k_BTHK, a=e_BTHK, b=b_BTHK)
    require(w_BTHK.shape == shape, f"w must be of shape {shape}", w=w_BTHK.shape)
    decay = w_BTHK.float().contiguous()
    return _run(
        r_BTHK, k_BTHK, v_BTHV, decay, None, e_BTHK, b_BTHK, state_BHKV, segment_ids, 1.0, chunk
    )


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    e: Tensor | None,
    b: Tensor | None,
    state: Tensor | None,
    segment_ids: Tensor | None,
    scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    tensors = (q, k, v, decay, beta, e, b, state)
    save = needs_gradient(*(x for x in tensors if x is not None))
    o_BTHV, final_BHKV, *_ = linear_recurrence_op(
        *tensors, segment_ids, scale, chunk_of(chunk, v.dtype), save
    )
    return o_BTHV, final_BHKV


def _require(
    q_BTGK: Tensor, v_BTHV: Tensor, state: Tensor | None, chunk: int, segment_ids: Tensor | None
) -> int:
    """Check what both recurrences require of q, v, state and segment_ids; return K."""
    require_device(v_BTHV)
    constraint = "q and v must be of shape [B, T, heads, width]"
    require(v_BTHV.dim() == q_BTGK.dim() == 4, constraint, q=q_BTGK.shape, v=v_BTHV.shape)
    (B, T, H, V), K = v_BTHV.shape, q_BTGK.shape[3]
    require(K <= WIDEST_KEY, f"keys must be at most {WIDEST_KEY} wide", K=K)
    require(chunk in CHUNKS, f"chunk must be one of {CHUNKS}", chunk=chunk)
    require_short("v", v_BTHV)
    require_rows("v", v_BTHV, (B, T, H, V), v_BTHV, 2)
    require_whole("state", state, (B, H, K, V), (torch.float32,), v_BTHV)
    require_whole("segment_ids", segment_ids, (B, T), (torch.int32,), v_BTHV)
    return K


def _require_like_v(v_BTHV: Tensor, shape: tuple[int, ...], **inputs: Tensor) -> None:
    for name, x in inputs.items():
        require(x.dtype == v_BTHV.dtype, f"{name} must have the dtype of v", dtype=x.dtype)
        require_rows(name, x, shape, v_BTHV, 2)
