"""What the kernels share: float32 or float64 inside, IEEE roots and quotients, sums in one order, signatures.

As in C++ nothing is contracted, so that element by element the bits are those of the CPU, but for the exponentials of
SiLU and attention, which are the GPU's own. Sums run over fixed blocks, first in the tree of the block, then over the
blocks in order: no atomics, and nothing depends on the other members. The tree follows from the block's shape and from
the alignment of its memory, which is the same for all members: no kernel is specialised for a number of members.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

__all__ = ["NAMES", "OPTIONS", "POINTERS", "Signature", "divide", "real", "sqrt", "sum_of_parts"]

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
WIDTH = tl.constexpr(256)

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


class Signature(NamedTuple):
    """A kernel, and what it is compiled for: types by argument, its constants, and the compiler's options."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any] = OPTIONS


def real(dtype: torch.dtype) -> Any:
    """The type of the arithmetic on this type of memory."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def sqrt(x):
    """Correctly rounded."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def divide(x, y):
    """Correctly rounded."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def sum_of_parts(parts, count):
    """The sum of ``count`` float64 numbers, in one order."""
    i = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float64)
    for first in range(0, count, WIDTH):
        total += tl.load(parts + first + i, mask=first + i < count, other=0.0)
    return tl.sum(total, axis=0)
