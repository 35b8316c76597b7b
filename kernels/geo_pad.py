"""Padding of images that knows the sphere, and its adjoint, each in one pass over memory.

Where longitude wraps, a row beyond a pole that the grid reaches is the row before it, half way round. Every other edge
is repeated: all of a region's, and those of a band of latitudes; on a torus the first row follows the last. In torch
padding is three concatenations; never ``F.pad(mode="replicate")``, whose compiled gradient is silently wrong after a
pointwise operation.

The adjoint adds padding to what it is a copy of. The operations see images (R, H, W, C): the planes of a contiguous
tensor with C = 1, or channels last. C++ pads numbers of any kind, half precision too, and adds float32 or float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.linear import transposes
from lsda_fast.kernels.registry import Operation

__all__ = ["edges", "geo_fold", "geo_pad"]

Poles = Sequence[bool]


def geo_pad(x: Tensor, n: int, periodic: bool, poles: Poles = (True, True), torus: bool = False) -> Tensor:
    """Pad by n on every side.

    Parameters
    ----------
    x : Tensor, shape (M, C, H, W)
        Contiguous, or in torch's channels-last format; anything else is copied.
    n : int
        At most H, and W where longitude wraps.
    periodic : bool
        Longitude wraps.
    poles : (bool, bool)
        The grid reaches the north and the south pole.
    torus : bool
        Both directions wrap, whatever the others say.

    Returns
    -------
    Tensor, shape (M, C, H + 2 n, W + 2 n)
        In the memory format of x; x itself for n = 0.

    Raises
    ------
    InputError
        No image, or a smaller one.
    """
    return _call(PAD_CALL, x, n, 0, periodic, poles, torus)


def geo_fold(u: Tensor, n: int, periodic: bool, poles: Poles = (True, True), torus: bool = False) -> Tensor:
    """The adjoint of ``geo_pad``, (M, C, H + 2 n, W + 2 n) -> (M, C, H, W)."""
    return _call(FOLD_CALL, u, n, 2 * n, periodic, poles, torus)


def edges(
    size: Sequence[int], n: int, periodic: bool, poles: Poles = (True, True), torus: bool = False
) -> tuple[int, bool, bool, bool, bool]:
    """n, periodic, north, south and torus as the operations take them, for images (..., H, W).

    Raises
    ------
    InputError
        No image, or a smaller one than the margin.
    """
    periodic = periodic or torus
    if len(size) != 4 or n < 0 or size[2] < n or size[3] < (n if periodic else 1):
        raise InputError(
            f"an image {tuple(size)} and a margin of {n}; accepted: (M, C, H, W), no smaller than the margin"
        )
    return n, periodic, *poles, torus  # type: ignore[return-value]


def _call(operation: Any, x: Tensor, n: int, margins: int, *rest: Any) -> Tensor:
    if n == 0:
        return x
    settings = edges([*x.shape[:2], *(length - margins for length in x.shape[2:])], n, *rest)
    if not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        return operation(x.permute(0, 2, 3, 1), *settings).permute(0, 3, 1, 2)
    planes = operation(x.contiguous().flatten(0, 1)[..., None], *settings)
    return planes.reshape(*x.shape[:2], *planes.shape[1:3])


def pad_reference(x: Tensor, n: int, periodic: bool, north: bool, south: bool, torus: bool) -> Tensor:
    """x (R, H, W, C) to (R, H + 2 n, W + 2 n, C)."""
    above, below = [x[:, :1]] * n, [x[:, -1:]] * n
    half = x.shape[2] // 2
    if periodic and north:
        above = [x[:, :n].flip(1).roll(half, 2)]
    if periodic and south:
        below = [x[:, -n:].flip(1).roll(half, 2)]
    if torus:
        above, below = [x[:, -n:]], [x[:, :n]]
    x = torch.cat([*above, x, *below], dim=1)
    west, east = ([x[:, :, -n:]], [x[:, :, :n]]) if periodic else ([x[:, :, :1]] * n, [x[:, :, -1:]] * n)
    return torch.cat([*west, x, *east], dim=2)


def fold_reference(u: Tensor, n: int, periodic: bool, north: bool, south: bool, torus: bool) -> Tensor:
    """u (R, H + 2 n, W + 2 n, C) to (R, H, W, C)."""
    west, east = u[:, :, :n], u[:, :, -n:]
    u = u[:, :, n:-n].clone()
    if periodic:
        u[:, :, -n:] += west
        u[:, :, :n] += east
    else:
        u[:, :, :1] += west.sum(2, keepdim=True)
        u[:, :, -1:] += east.sum(2, keepdim=True)
    above, below = u[:, :n], u[:, -n:]
    x = u[:, n:-n].clone()
    if torus:
        x[:, -n:] += above
        x[:, :n] += below
        return x
    half = x.shape[2] // 2
    for rows, edge, far, pole in ((above, x[:, :n], x[:, :1], north), (below, x[:, -n:], x[:, -1:], south)):
        if periodic and pole:
            edge += rows.roll(-half, 2).flip(1)
        else:
            far += rows.sum(1, keepdim=True)
    return x


def _pad_empty(x: Tensor, n: int, *rest: bool) -> Tensor:
    R, H, W, C = x.shape
    return x.new_empty(R, H + 2 * n, W + 2 * n, C)


def _fold_empty(u: Tensor, n: int, *rest: bool) -> Tensor:
    R, H, W, C = u.shape
    return u.new_empty(R, H - 2 * n, W - 2 * n, C)


def _pad_fill(out: Tensor, x: Tensor, *settings: Any) -> None:
    native.run("geo_pad", x.dtype, out, x, *x.shape, *settings)


def _fold_fill(out: Tensor, u: Tensor, *settings: Any) -> None:
    native.run("geo_fold", u.dtype, out, u, *out.shape, *settings)


def _pad_limits(x: Tensor, *rest: Any) -> str:
    return "" if x.itemsize in (2, 4, 8) else f"{x.dtype}; C++ pads numbers of 2, 4 or 8 bytes"


def _fold_limits(u: Tensor, *rest: Any) -> str:
    return "" if u.is_floating_point() else f"{u.dtype}; C++ adds float32 or float64"


_SIGNATURE = "Tensor x, int n, bool periodic, bool north, bool south, bool torus) -> Tensor"
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PAD = Operation(
    f"geo_pad({_SIGNATURE}",
    reference=pad_reference,
    empty=_pad_empty,
    natives={"cpu": Native(_pad_fill, _pad_limits, _NUMBERS)},
)
FOLD = Operation(
    f"geo_fold({_SIGNATURE}",
    reference=fold_reference,
    empty=_fold_empty,
    natives={"cpu": Native(_fold_fill, _fold_limits)},
)
PAD_CALL, FOLD_CALL = transposes(PAD, FOLD)
