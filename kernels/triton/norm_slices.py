"""norm_silu and its products for slices that fit into one program: one pass over memory, everything in registers.

A program makes OUTER tokens, or one group: its places by its channels where the channels lie last, else its channels by
its places.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton import TILE
from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real
from lsda_fast.kernels.triton.standard import project, silu, slope, standardize

__all__ = ["launch", "signatures", "tile"]

# Elements of a program that makes several tokens.
_BLOCK = 1024


@triton.jit(do_not_specialize=["R", "share"])
def _kernel(
    out,  # (R, C, S), or (R, S, C) for "last" and, with S = 1, for "tokens"
    t,  # as out; what a derivative is applied to
    x,  # as out
    kept,  # (R, groups, 2): mean and scale, of the value, for a derivative
    a,  # (R / share, C)
    b,
    R,
    share,
    groups,
    C,
    S,
    eps: tl.float64,
    PRODUCT: tl.constexpr,
    SILU: tl.constexpr,
    LAYOUT: tl.constexpr,
    REAL: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    EACH: tl.constexpr = LAYOUT == "tokens"
    program = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, OUTER)[:, None], tl.arange(0, INNER)[None, :]
    if EACH:
        row, c, size = program * OUTER + i, j, C
        inside = (row < R) & (c < C)
        base, at = program * OUTER * C, i * C + c
        known, own = inside, row // share * C + c
    else:
        row, first, width = program // groups, program % groups * (C // groups), C // groups
        c, s = (j, i) if LAYOUT == "last" else (i, j)
        inside, size = (c < width) & (s < S), width * S
        base, at = row * C * S + first * (1 if LAYOUT == "last" else S), s * C + c if LAYOUT == "last" else c * S + s
        known, own = c < width, row // share * C + first + c
    scale_by = tl.load(a + own, mask=known, other=0.0).to(REAL)
    value = tl.load(x + base + at, mask=inside, other=0.0).to(REAL)
    if PRODUCT == "value":
        n, mean, scale = standardize(value, inside, size, eps, EACH)
    else:
        own_kept, there = kept + 2 * (row if EACH else program), row < R
        v = tl.load(t + base + at, mask=inside, other=0.0).to(REAL)
        mean = tl.load(own_kept, mask=there, other=0.0).to(REAL)
        scale = tl.load(own_kept + 1, mask=there, other=0.0).to(REAL)
        n = tl.where(inside, value - mean, 0.0) * scale
    if PRODUCT == "value" or SILU:
        p = n * scale_by + tl.load(b + own, mask=known, other=0.0).to(REAL)
    if PRODUCT == "value":
        y = silu(p) if SILU else p
    else:
        factor = scale_by * slope(p) if SILU else scale_by
        if PRODUCT == "jvp":
            y = factor * project(v, n, scale, size, EACH)
        else:
            y = project(factor * v, n, scale, size, EACH)
    tl.store(out + base + at, y.to(out.dtype.element_ty), mask=inside)
    if PRODUCT == "value":
        tl.store(kept + 2 * (row if EACH else program), mean, mask=row < R)
        tl.store(kept + 2 * (row if EACH else program) + 1, scale, mask=row < R)


def tile(layout: str, C: int, S: int) -> tuple[int, int] | None:
    """OUTER and INNER for slices of C channels at S places; None where they do not fit."""
    outer, inner = (C, S) if layout == "planes" else (S, C)
    outer, inner = triton.next_power_of_2(outer), triton.next_power_of_2(inner)
    if outer * inner > TILE:
        return None
    return (max(1, _BLOCK // inner), inner) if layout == "tokens" else (outer, inner)


def launch(
    product: str, layout: str, blocks: tuple[int, int], tensors: tuple[Tensor, ...], sizes: tuple, silu: bool
) -> None:
    """``tensors`` out, t, x, kept, a, b; ``sizes`` R, share, groups, C, S, eps."""
    R, _, groups, *_ = sizes
    grid = (triton.cdiv(R, blocks[0]) if layout == "tokens" else R * groups,)
    _kernel[grid](*tensors, *sizes, **_constants(product, layout, blocks, tensors[0].dtype, silu), **OPTIONS)


def _constants(product: str, layout: str, blocks: tuple[int, int], dtype: torch.dtype, silu: bool) -> dict:
    how = {"PRODUCT": product, "SILU": silu, "LAYOUT": layout}
    return {**how, "REAL": real(dtype), "OUTER": blocks[0], "INNER": blocks[1]}


def _signature(product: str, layout: str, blocks: tuple[int, int], dtype: torch.dtype) -> Signature:
    data = dict.fromkeys(("out", "t", "x"), POINTERS[dtype])
    wide = dict.fromkeys(("kept", "a", "b"), POINTERS[torch.promote_types(dtype, torch.float32)])
    sizes = dict.fromkeys(("R", "share", "groups", "C", "S"), "i32")
    return Signature(
        _kernel, {**data, **wide, **sizes, "eps": "fp64"}, _constants(product, layout, blocks, dtype, True)
    )


def signatures(product: str) -> dict[str, Signature]:
    """The largest tiles, and tokens of a usual width."""
    found = {
        f"tokens_{NAMES[dtype]}": _signature(product, "tokens", (1, TILE), dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    found["short_tokens_f32"] = _signature(product, "tokens", (2, 512), torch.float32)
    found["last_f32"] = _signature(product, "last", (TILE // 8, 8), torch.float32)
    found["planes_f32"] = _signature(product, "planes", (8, TILE // 8), torch.float32)
    return found
