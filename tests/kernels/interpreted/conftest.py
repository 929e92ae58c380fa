"""Kernels on the CPU: run as `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.

Triton's interpreter cannot share a process with its compiler. It takes bfloat16 for integers,
truncates where the hardware rounds, and wraps where float8 saturates: repaired here, through torch.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

TRUE = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
BITS = {tl.bfloat16: torch.uint16, tl.float8e4nv: torch.uint8, tl.float8e5: torch.uint8}
LARGEST_E4M3 = 448.0

stock_convert = interpreter._convert_float
stock_dot = interpreter.InterpreterBuilder.create_dot
stock_load = interpreter.InterpreterBuilder.create_masked_load
stock_patch = interpreter._patch_lang_tensor


def decoded(data, dtype):
    x = torch.from_numpy(np.ascontiguousarray(data))
    return x.view(TRUE[dtype]) if dtype in BITS else x


def convert(data, source, target, rounding):
    if source not in TRUE or target not in TRUE:
        return stock_convert(data, source, target, rounding)
    x = decoded(data, source).float()
    if target == tl.float8e4nv:
        x = x.clamp(-LARGEST_E4M3, LARGEST_E4M3)
    x = x.to(TRUE[target])
    return (x.view(BITS[target]) if target in BITS else x).numpy()


def widened(handle):
    dtype = handle.dtype.scalar
    if dtype not in (*BITS, tl.float16):
        return handle
    return interpreter.TensorHandle(decoded(handle.data, dtype).float().numpy(), tl.float32)


def dot(self, a, b, accumulator, precision, imprecise):
    return stock_dot(self, widened(a), widened(b), accumulator, precision, imprecise)


def masked_load(self, pointers, mask, other, *policies):
    """NaN where a mask hides an element and `other` is not given: undefined on a GPU.

    Tiles of one element are left alone: there the interpreter takes other=0 for no `other`.
    """
    loaded = stock_load(self, pointers, mask, other, *policies)
    dtype = loaded.dtype.scalar
    if other is None and dtype in TRUE and loaded.data.size > 1:
        nan = torch.full((), torch.nan).to(TRUE[dtype])
        nan = (nan.view(BITS[dtype]) if dtype in BITS else nan).numpy()
        loaded.data = np.where(mask.data, loaded.data, nan)
    return loaded


def patch_tensor(tensor, *scope):
    """Loop bounds of triton 3.6 as numpy >= 2.4 takes them: drop with that triton."""
    stock_patch(tensor, *scope)
    tensor.__index__ = lambda self: self.handle.data.item()


@pytest.fixture(autouse=True)
def repaired_interpreter(monkeypatch, nan_filled_empty):
    if not triton.knobs.runtime.interpret:
        pytest.skip("run as: TRITON_INTERPRET=1 pytest tests/kernels/interpreted")
    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", masked_load)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)
