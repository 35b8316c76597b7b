"""Matrices as C++ multiplies with them: blocks of columns that are read together (csrc/core/product.h)."""

from torch import Tensor

from lsda_fast.kernels import native

__all__ = ["BLOCK", "obstacle", "packed", "unpacked"]

BLOCK = 16  # kTogetherColumns


def packed(matrix: Tensor) -> Tensor:
    """Matrices (..., taps, columns) as (..., columns / B, taps, B), B = 16, or all columns where that fails."""
    columns = matrix.shape[-1]
    block = columns if columns % BLOCK else BLOCK
    return matrix.unflatten(-1, (-1, block)).movedim(-2, -3).contiguous()


def unpacked(matrix: Tensor) -> Tensor:
    """The inverse of ``packed``."""
    return matrix.movedim(-3, -2).flatten(-2)


def obstacle(*columns: int) -> str:
    """Why C++ cannot multiply here, or with blocks of so many columns; "" where it can."""
    if native.load("cpu").code.isa() == "baseline":
        return "the baseline instruction set has no fused multiplication and addition"
    odd = [n for n in columns if n % BLOCK or not n]
    return f"{' and '.join(map(str, odd))} columns; C++ takes multiples of {BLOCK}" if odd else ""
