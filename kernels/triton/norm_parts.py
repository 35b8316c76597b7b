"""norm_silu and its products for slices of any size, in parts, and so for few members too on the whole GPU:

    sums      of each channel, over one part of the places: of x - x0 and its square, or of t and t (x - mean)
    moments   of each slice, from its channels' parts: mean and scale = 1 / sqrt(variance + eps), or mean(t), mean(n t)
    apply     element by element

x0 is the slice's first element, and t what P is applied to: v for the JVP, D u for the VJP. Sums are float64; parts and
tiles follow from the number of places, not from the members.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real
from lsda_fast.kernels.triton.standard import silu, slope

__all__ = ["launch", "signatures"]

_SUMS, _APPLY, _CHANNELS, _PARTS, _WIDTH = 1024, 1024, 32, 256, 1024


@triton.jit(do_not_specialize=["share"])
def _sums_kernel(
    sums,  # (R, 2, C, parts), float64
    t,  # (R, C, S), or (R, S, C) for LAST
    x,
    kept,  # (R, groups, 2): mean and scale, for a derivative
    a,  # (R / share, C)
    b,
    share,
    groups,
    C,
    S,
    parts,
    tiles,
    PRODUCT: tl.constexpr,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    REAL: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row, part, c = _place(parts, C, CHANNELS)
    if PRODUCT == "value":
        first = c // (C // groups) * (C // groups)
        origin = tl.load(x + row * C * S + first * (1 if LAST else S), mask=c < C, other=0.0).to(REAL)
    else:
        own = kept + (row * groups + c // (C // groups)) * 2
        origin = tl.load(own, mask=c < C, other=0.0).to(REAL)
        scale = tl.load(own + 1, mask=c < C, other=0.0).to(REAL)
        scale_by = tl.load(a + row // share * C + c, mask=c < C, other=0.0).to(REAL)
        shift = tl.load(b + row // share * C + c, mask=c < C, other=0.0).to(REAL)
    one = tl.zeros([PLACES, CHANNELS], tl.float64)
    two = one
    for tile in range(tiles):
        s = (part * tiles + tile) * PLACES + tl.arange(0, PLACES)[:, None]
        inside = (s < S) & (c < C)
        at = s * C + c if LAST else c * S + s
        value = tl.load(x + row * C * S + at, mask=inside, other=0.0).to(REAL)
        d = tl.where(inside, value.to(tl.float64) - origin.to(tl.float64), 0.0)
        if PRODUCT == "value":
            g = d
        else:
            u = tl.load(t + row * C * S + at, mask=inside, other=0.0).to(REAL)
            if PRODUCT == "vjp":
                u *= scale_by
                if SILU:
                    u *= slope((value - origin) * scale * scale_by + shift)
            g = tl.where(inside, u, 0.0).to(tl.float64)
        one += g
        two += g * d
    to = sums + (row * 2 * C + c) * parts + part
    tl.store(to, tl.sum(one, axis=0)[None, :], mask=c < C)
    tl.store(to + C * parts, tl.sum(two, axis=0)[None, :], mask=c < C)


@triton.jit
def _moments_kernel(
    moments,  # (R, groups, 2), float64: mean(t) and mean(n t)
    kept,  # (R, groups, 2): mean and scale, of the value, for a derivative
    sums,  # (R, 2, C, parts), float64
    x,  # (R, C, S), or (R, S, C) for LAST
    groups,
    C,
    S,
    parts,
    eps: tl.float64,
    PRODUCT: tl.constexpr,
    LAST: tl.constexpr,
    WIDTH: tl.constexpr,
):
    slice = tl.program_id(0).to(tl.int64)
    row, first, width = slice // groups, slice % groups * (C // groups), C // groups
    size = width * S
    one, two = _pair(sums + (row * 2 * C + first) * parts, C * parts, width * parts, WIDTH)
    if PRODUCT == "value":
        shift = one / size
        variance = two / size - shift * shift
        origin = tl.load(x + row * C * S + first * (1 if LAST else S)).to(tl.float64)
        scale = 1.0 / tl.sqrt(tl.where(variance > 0.0, variance, variance * 0.0) + eps)
        tl.store(kept + slice * 2, (origin + shift).to(kept.dtype.element_ty))
        tl.store(kept + slice * 2 + 1, scale.to(kept.dtype.element_ty))
    else:
        tl.store(moments + slice * 2, one / size)
        tl.store(moments + slice * 2 + 1, two / size * tl.load(kept + slice * 2 + 1).to(tl.float64))


@triton.jit(do_not_specialize=["share"])
def _apply_kernel(
    out,  # (R, C, S), or (R, S, C) for LAST
    t,
    x,
    kept,  # (R, groups, 2): mean and scale
    a,  # (R / share, C)
    b,
    moments,  # (R, groups, 2), float64: mean(t) and mean(n t)
    share,
    groups,
    C,
    S,
    blocks,
    PRODUCT: tl.constexpr,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    REAL: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row, block, c = _place(blocks, C, CHANNELS)
    s = block * PLACES + tl.arange(0, PLACES)[:, None]
    inside = (s < S) & (c < C)
    at = s * C + c if LAST else c * S + s
    slice = (row * groups + c // (C // groups)) * 2
    mean = tl.load(kept + slice, mask=c < C, other=0.0).to(REAL)
    scale = tl.load(kept + slice + 1, mask=c < C, other=0.0).to(REAL)
    scale_by = tl.load(a + row // share * C + c, mask=c < C, other=0.0).to(REAL)
    n = (tl.load(x + row * C * S + at, mask=inside, other=0.0).to(REAL) - mean) * scale
    if PRODUCT == "value" or SILU:
        p = n * scale_by + tl.load(b + row // share * C + c, mask=c < C, other=0.0).to(REAL)
    if PRODUCT == "value":
        y = silu(p) if SILU else p
    else:
        factor = scale_by * slope(p) if SILU else scale_by
        m1 = tl.load(moments + slice, mask=c < C, other=0.0).to(REAL)
        m2 = tl.load(moments + slice + 1, mask=c < C, other=0.0).to(REAL)
        g = tl.load(t + row * C * S + at, mask=inside, other=0.0).to(REAL)
        if PRODUCT == "jvp":
            y = factor * (scale * (g - m1 - n * m2))
        else:
            y = scale * (factor * g - m1 - n * m2)
    tl.store(out + row * C * S + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(blocks, C, CHANNELS: tl.constexpr):
    """Row, block of places and channels (1, CHANNELS) of a program; those of one place lie side by side."""
    columns = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0).to(tl.int64)
    c = (program % columns).to(tl.int32) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return program // columns // blocks, (program // columns % blocks).to(tl.int32), c


@triton.jit
def _pair(parts, stride, count, WIDTH: tl.constexpr):
    """The sums of two rows of numbers, in one order."""
    i = tl.arange(0, WIDTH)
    one = tl.zeros([WIDTH], tl.float64)
    two = one
    for first in range(0, count, WIDTH):
        one += tl.load(parts + first + i, mask=first + i < count, other=0.0)
        two += tl.load(parts + stride + first + i, mask=first + i < count, other=0.0)
    return tl.sum(one, axis=0), tl.sum(two, axis=0)


def launch(product: str, last: bool, tensors: tuple[Tensor, ...], sizes: tuple, silu: bool) -> None:
    """``tensors`` out, t, x, kept, a, b; ``sizes`` R, share, groups, C, S, eps."""
    out, t, x, kept, a, b = tensors
    R, share, groups, C, S, eps = sizes
    places, channels = _tile(C, S, last, _SUMS)
    columns = triton.cdiv(C, channels)
    tiles = triton.cdiv(S, places * _PARTS)
    parts = triton.cdiv(S, places * tiles)
    sums = x.new_empty(R, 2, C, parts, dtype=torch.float64)
    moments = x.new_empty(R, groups, 2, dtype=torch.float64)
    how = {"PRODUCT": product, "LAST": last}
    blocks = {"SILU": silu, "REAL": real(x.dtype), "PLACES": places, "CHANNELS": channels}
    _sums_kernel[(R * parts * columns,)](
        *(sums, t, x, kept, a, b, share, groups, C, S, parts, tiles), **how, **blocks, **OPTIONS
    )
    _moments_kernel[(R * groups,)](moments, kept, sums, x, groups, C, S, parts, eps, WIDTH=_WIDTH, **how, **OPTIONS)
    blocks["PLACES"], blocks["CHANNELS"] = places, channels = _tile(C, S, last, _APPLY)
    blocks_of = triton.cdiv(S, places)
    _apply_kernel[(R * blocks_of * triton.cdiv(C, channels),)](
        *(out, t, x, kept, a, b, moments, share, groups, C, S, blocks_of), **how, **blocks, **OPTIONS
    )


def _tile(C: int, S: int, last: bool, elements: int) -> tuple[int, int]:
    """Places and channels of a tile: contiguous ones first."""
    most_channels, most_places = triton.next_power_of_2(C), triton.next_power_of_2(S)
    places = min(most_places, elements // min(most_channels, _CHANNELS) if last else elements)
    return places, min(most_channels, elements // places)


def _signature(kernel: object, dtype: torch.dtype, names: str, sizes: str, constants: dict) -> Signature:
    wide = dict.fromkeys(("kept", "a", "b"), POINTERS[torch.promote_types(dtype, torch.float32)])
    wide |= {"sums": "*fp64", "moments": "*fp64"}
    pointers = {name: wide.get(name, POINTERS[dtype]) for name in names.split()}
    numbers = {name: "fp64" if name == "eps" else "i32" for name in sizes.split()}
    return Signature(kernel, {**pointers, **numbers}, constants)


def signatures(product: str) -> dict[str, Signature]:
    """Of the stages that make the product, with SiLU."""
    found = {}
    for dtype, last in ((torch.float32, True), (torch.float32, False), (torch.float64, True), (torch.bfloat16, True)):
        sums, apply = (
            {
                "PRODUCT": product,
                "LAST": last,
                "SILU": True,
                "REAL": real(dtype),
                "PLACES": tile[0],
                "CHANNELS": tile[1],
            }
            for tile in (_tile(4096, 4096, last, _SUMS), _tile(4096, 4096, last, _APPLY))
        )
        of = f"{'last' if last else 'planes'}_{NAMES[dtype]}"
        names, sizes = "t x kept a b", "share groups C S"
        found[f"sums_{of}"] = _signature(_sums_kernel, dtype, f"sums {names}", f"{sizes} parts tiles", sums)
        found[f"apply_{of}"] = _signature(_apply_kernel, dtype, f"out {names} moments", f"{sizes} blocks", apply)
    how = {"PRODUCT": product, "LAST": True, "WIDTH": _WIDTH}
    names, sizes = "moments kept sums x", "groups C S parts eps"
    found["moments"] = _signature(_moments_kernel, torch.float32, names, sizes, how)
    return found
