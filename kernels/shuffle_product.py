"""A convolution of one place and the pixel shuffle behind it, which makes patches of p x p places, and its transpose:

    y[m, (Y, X), f] = sum_c weight[(f, Y mod p, X mod p), c] x[m, (Y / p, X / p), c] + bias[(f, Y mod p, X mod p)]

In C++ the product's rows are written where they belong, a row of a patch at a time, and read there by the transpose.
Images have their channels last, (M, h, w, C) and (M, h p, w p, F).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsda_fast.kernels import native
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.packed import BLOCK, obstacle, packed, unpacked
from lsda_fast.kernels.registry import Operation

__all__ = ["SHUFFLE", "SHUFFLE_ADJOINT", "shuffle_products"]


def shuffle_products(
    x: Tensor, weight: Tensor, bias: Tensor | None, patch: int
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
    """The value, v -> J v and u -> J' u, past autograd; None where no native code takes it.

    Parameters
    ----------
    x : Tensor, shape (M, C, h, w)
        In torch's channels-last format, as the results are.
    weight : Tensor, shape (F p p, C)
    bias : Tensor, shape (F p p,), optional
    patch : int
    """
    flat, C, row = x.permute(0, 2, 3, 1), weight.shape[1], len(weight) // patch
    if not flat.is_contiguous() or x.dtype != weight.dtype or C % BLOCK or row % BLOCK:
        return None
    if not SHUFFLE.native(flat, weight.new_empty(0, row // BLOCK, C, BLOCK), bias):
        return None
    # (a, b, f): as places and features lie in a row of the result.
    rows = weight.unflatten(0, (-1, patch, patch)).permute(1, 2, 0, 3).flatten(1, 2)
    ahead, back = packed(rows.mT), packed(rows.flatten(0, 1)).unflatten(1, (patch, -1))
    shift = bias if bias is None else bias.unflatten(0, (-1, patch, patch)).permute(1, 2, 0).flatten(1).contiguous()

    def image(y: Tensor) -> Tensor:
        return y.permute(0, 3, 1, 2)

    def last(t: Tensor) -> Tensor:
        return t.permute(0, 2, 3, 1).contiguous()

    return (
        image(SHUFFLE(flat, ahead, shift)),
        lambda v: image(SHUFFLE(last(v), ahead, None)),
        lambda u: image(SHUFFLE_ADJOINT(last(u), back)),
    )


def shuffle_reference(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """x (M, h, w, C), the weight (p, p F / B, C, B), bias (p, p F) to (M, h p, w p, F)."""
    y = torch.einsum("mhwc,pcr->mhpwr", x, unpacked(w))
    y = y if bias is None else y + bias[:, None]
    M, h, p, columns, row = y.shape
    return y.reshape(M, h * p, columns * p, row // p)


def adjoint_reference(u: Tensor, w: Tensor) -> Tensor:
    """u (M, h p, w p, F), the weight (C / B, p, p F, B) to (M, h, w, C)."""
    _, p, row, _ = w.shape
    M, H, W, _ = u.shape
    weight = unpacked(w.flatten(1, 2)).unflatten(0, (p, row))
    return torch.einsum("mhpwr,prc->mhwc", u.reshape(M, H // p, p, W // p, row), weight)


def _shuffle_empty(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    (M, rows, columns, _), p = x.shape, w.shape[0]
    return x.new_empty(M, rows * p, columns * p, w.shape[1] * w.shape[3] // p)


def _adjoint_empty(u: Tensor, w: Tensor) -> Tensor:
    (M, H, W, _), p = u.shape, w.shape[1]
    return u.new_empty(M, H // p, W // p, w.shape[0] * w.shape[3])


def _run(out: Tensor, t: Tensor, w: Tensor, bias: Tensor | None, coarse: Tensor, fine: Tensor, adjoint: bool) -> None:
    patch = w.shape[1 if adjoint else 0]
    native.run("shuffle", t.dtype, out, t, w, bias, *coarse.shape, fine.shape[3], patch, adjoint)


def _limits(x: Tensor, w: Tensor, *rest: Any) -> str:
    return obstacle(w.shape[-1])


SHUFFLE = Operation(
    "shuffle_product(Tensor x, Tensor w, Tensor? bias) -> Tensor",
    reference=shuffle_reference,
    empty=_shuffle_empty,
    natives={"cpu": Native(lambda y, x, w, bias: _run(y, x, w, bias, x, y, False), _limits)},
)
SHUFFLE_ADJOINT = Operation(
    "shuffle_adjoint(Tensor u, Tensor w) -> Tensor",
    reference=adjoint_reference,
    empty=_adjoint_empty,
    natives={"cpu": Native(lambda x, u, w: _run(x, u, w, None, x, u, True), _limits)},
)
