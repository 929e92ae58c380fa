"""Device functions of a GLU epilogue: `glu` of ../rows/reference.py on a tile in registers."""

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

from ..rows.glu import ACTIVATIONS, OAI, gating_factor


@triton.jit
def gate_factor(gate, limit, ACTIVATION: tl.constexpr, LIMITED: tl.constexpr):
    """(act(gate), dact/dgate); the derivative is 0 where the gate is clamped."""
    passes = gate <= limit
    if LIMITED:
        gate = tl.minimum(gate, limit)
    s, slope = gating_factor(gate, ACTIVATION)
    slope = s + gate * slope
    if LIMITED:
        slope = tl.where(passes, slope, 0.0)
    return gate * s, slope


@triton.jit
def up_factor(up, limit, ACTIVATION: tl.constexpr, LIMITED: tl.constexpr):
    """The factor up of glu: clamped if LIMITED, plus one for oai."""
    if LIMITED:
        up = tl.maximum(tl.minimum(up, limit), -limit)
    return up + 1.0 if ACTIVATION == OAI else up


def activation_arguments(activation: str, limit: float | None) -> dict[str, float | int | bool]:
    """The kernel arguments of an activation and its clamp."""
    return {
        "limit": 0.0 if limit is None else limit,
        "ACTIVATION": (*ACTIVATIONS, "relu2").index(activation),
        "LIMITED": limit is not None,
    }
