"""A convolution of images that are continued in their margins, and its transpose:

    y = W * pad(x) + bias,   x = pad' W' u

with ``geo_pad``'s margins: ``norm_conv`` without the norm, by the same C++, whose bits are its own. The operations see
images and weights as ``norm_conv`` does. There are no derivatives of them: they are each other's.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lsda_fast.kernels.geo_pad import edges, fold_reference, pad_reference
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.norm_conv import (
    both_filters,
    convolved,
    count_of,
    flat_of,
    image_of,
    run_native,
    spread,
    suits,
    wider,
)
from lsda_fast.kernels.packed import BLOCK, obstacle
from lsda_fast.kernels.registry import Operation

__all__ = ["geo_conv_products"]

Product = Callable[[Tensor], Tensor]


def geo_conv_products(
    x: Tensor, kernel: Tensor, shift: Tensor | None, pad: Sequence[Any]
) -> tuple[Tensor, Product, Product] | None:
    """The value, v -> J v and u -> J' u, past autograd; None where no native code takes it.

    Parameters
    ----------
    x : Tensor, shape (M, C, H, W)
        In torch's channels-last format.
    kernel, shift : Tensor, shape (D, C, k, k) and (D,), the second optional
    pad : sequence
        What ``geo_pad`` is told; its margin is k // 2.
    """
    if not suits(x, kernel, pad):
        return None
    C, k = kernel.shape[1:3]
    size, flat, image = x.shape[2:], flat_of(x), [*x.shape[2:], *map(int, edges(x.shape, *pad))]
    if not CONV.native(flat, kernel.new_empty(0, k, k, C, BLOCK), shift, image):
        return None
    forward, backward = both_filters(kernel)
    return (
        image_of(CONV(flat, forward, shift, image), size),
        lambda v: image_of(CONV(flat_of(v), forward, None, image), size),
        lambda u: image_of(ADJOINT(flat_of(u), backward, image), size),
    )


def _conv_reference(x: Tensor, w: Tensor, bias: Tensor | None, image: Sequence[int]) -> Tensor:
    padded = pad_reference(x.unflatten(1, tuple(image[:2])), image[2], *map(bool, image[3:])).flatten(1, 2)
    return convolved(padded, w, bias, wider(image))


def _adjoint_reference(u: Tensor, w: Tensor, image: Sequence[int]) -> Tensor:
    wide = spread(u, w, image).unflatten(1, tuple(wider(image)))
    return fold_reference(wide, image[2], *map(bool, image[3:])).flatten(1, 2)


def _conv_fill(out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, image: Sequence[int]) -> None:
    settings = (1, x.shape[2], count_of(w), False, True, 0.0)
    run_native("jvp", image, (out, None, x, None, None, None, w, bias, None), settings)


def _adjoint_fill(out: Tensor, u: Tensor, w: Tensor, image: Sequence[int]) -> None:
    run_native(
        "vjp", image, (out, None, u, None, None, None, w, None, None), (1, count_of(w), w.shape[3], False, True, 0.0)
    )


CONV = Operation(
    "geo_conv(Tensor x, Tensor w, Tensor? bias, int[] image) -> Tensor",
    reference=_conv_reference,
    empty=lambda x, w, *rest: x.new_empty(*x.shape[:2], count_of(w)),
    natives={"cpu": Native(_conv_fill, lambda x, w, *rest: obstacle(w.shape[4]))},
)
ADJOINT = Operation(
    "geo_conv_adjoint(Tensor u, Tensor w, int[] image) -> Tensor",
    reference=_adjoint_reference,
    empty=lambda u, w, *rest: u.new_empty(*u.shape[:2], count_of(w)),
    natives={"cpu": Native(_adjoint_fill, lambda u, w, *rest: obstacle(w.shape[4]))},
)
