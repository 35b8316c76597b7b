"""gated_residual_norm and its products in Triton: a program makes ROWS tokens, whole, in one pass over memory.

n is that of y as it is stored, as the products find it again.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton import TILE
from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real
from lsda_fast.kernels.triton.standard import project, standardize

__all__ = ["SIGNATURES", "fill", "launch", "signatures"]

# Elements of a program that makes several tokens.
_BLOCK = 1024


@triton.jit(do_not_specialize=["R", "share"])
def _kernel(
    first,  # (R, C): y, or y', or x's for the VJP
    second,  # (R, C): n, or n', or branch's for the VJP
    left,  # (R, C): x, or x', or y's for the VJP
    right,  # (R, C): branch, or branch', or n's for the VJP
    y0,  # (R, C): y, for the derivatives
    gate,  # (R / share, C)
    a,
    b,
    R,
    share,
    C,
    eps: tl.float64,
    PRODUCT: tl.constexpr,
    GATE: tl.constexpr,
    REAL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, CHANNELS)[None, :]
    inside = (row < R) & (c < C)
    at, own = row * C + c, row // share * C + c
    one = tl.load(left + at, mask=inside, other=0.0).to(REAL)
    two = tl.load(right + at, mask=inside, other=0.0).to(REAL)
    factor = tl.load(a + own, mask=inside, other=0.0).to(REAL)
    opening = tl.load(gate + own, mask=inside, other=0.0).to(REAL) if GATE else 1.0
    if PRODUCT == "value":
        one = (one + opening * two).to(first.dtype.element_ty)
        y = one.to(REAL)
    else:
        y = tl.load(y0 + at, mask=inside, other=0.0).to(REAL)
    n, _, scale = standardize(y, inside, C, eps, True)
    if PRODUCT == "value":
        two = factor * n + tl.load(b + own, mask=inside, other=0.0).to(REAL)
    elif PRODUCT == "jvp":
        one += opening * two
        two = factor * project(one, n, scale, C, True)
    else:
        one += project(factor * two, n, scale, C, True)
        two = opening * one
    tl.store(first + at, one.to(first.dtype.element_ty), mask=inside)
    tl.store(second + at, two.to(second.dtype.element_ty), mask=inside)


def launch(
    product: str,
    out: tuple[Tensor, Tensor],
    left: Tensor,
    right: Tensor,
    y: Tensor,
    gate: Tensor | None,
    a: Tensor,
    b: Tensor,
    eps: float,
) -> None:
    """One of "value", "jvp" and "vjp"; of the first y is not read, of the others b."""
    if left.numel() == 0:
        return
    R, C = left.shape
    blocks = _blocks(C)
    # Triton takes no absent tensors; a is not read as the gate.
    tensors = (*out, left, right, y, a if gate is None else gate, a, b)
    grid = (triton.cdiv(R, blocks[0]),)
    _kernel[grid](
        *tensors, R, R // len(a), C, eps, **_constants(product, gate is not None, left.dtype, blocks), **OPTIONS
    )


def fill(out: tuple[Tensor, Tensor], x: Tensor, branch: Tensor, *rest: Any) -> None:
    """See ``lsda_fast.kernels.gated_residual_norm``."""
    launch("value", out, x, branch, x, *rest)


def _blocks(C: int) -> tuple[int, int]:
    """ROWS and CHANNELS."""
    channels = triton.next_power_of_2(C)
    return max(1, _BLOCK // channels), channels


def _constants(product: str, gate: bool, dtype: torch.dtype, blocks: tuple[int, int]) -> dict:
    return {"PRODUCT": product, "GATE": gate, "REAL": real(dtype), "ROWS": blocks[0], "CHANNELS": blocks[1]}


def _signature(product: str, dtype: torch.dtype, channels: int) -> Signature:
    data = dict.fromkeys(("first", "second", "left", "right", "y0", "gate"), POINTERS[dtype])
    affine = dict.fromkeys("ab", POINTERS[torch.promote_types(dtype, torch.float32)])
    numbers = {**dict.fromkeys(("R", "share", "C"), "i32"), "eps": "fp64"}
    return Signature(_kernel, {**data, **affine, **numbers}, _constants(product, True, dtype, _blocks(channels)))


def signatures(product: str) -> dict[str, Signature]:
    """Gated, of the widest tokens and of a usual width."""
    wide = {NAMES[d]: _signature(product, d, TILE) for d in (torch.float32, torch.float64, torch.bfloat16)}
    return {**wide, "short_f32": _signature(product, torch.float32, 512)}


SIGNATURES = signatures("value")
