"""Tile order of matrix products: device functions shared by all families."""

# Triton reads an annotation on a kernel's argument as its type at run time.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl


@triton.jit
def tile_of(num_cols, GROUP: tl.constexpr):
    """(row, column) of a program's tile, in bands of GROUP rows of tiles.

    Programs that run at the same time then share rows and columns of the operands, which stay in L2
    (the Triton matrix multiplication tutorial's grouped ordering).
    """
    program = tl.program_id(0)
    num_high = tl.num_programs(0) // num_cols
    band = program // (GROUP * num_cols) * GROUP
    inside = program % (GROUP * num_cols)
    size = tl.minimum(num_high - band, GROUP)
    return band + inside % size, inside // size
