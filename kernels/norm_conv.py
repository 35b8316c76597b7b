"""Normalisation, SiLU, margins and the convolution behind them, with the products of their derivative:

    y = W * pad(silu(a n + b)) + bias + add,   n = (x - mean) / sqrt(variance + eps)   (``norm_silu``)
    J v = W * pad(D P v) + add,   J' u = P D pad' W' u + add

In C++ what lies between norm and convolution stays in cache, an image a thread at a time, and what is added costs no
pass of its own. Elsewhere, and in half precision, they run one after the other: ``norm_conv_products`` is for either.
The convolution takes multiplications and additions fused, in one order for every instruction set that has them; one of
3 x 3 places, of images of even size, takes 16 for every 4 places, where plain ones are 36 (Lavin & Gray 2016,
arXiv:1509.09308). The bits of C++ are its own, those of the norm in it are ``norm_silu``'s.

The operations see images with channels last, x (R, S, C) with S = H W, a and b (C,), and the weight as filters that are
read together lie: (D / B, k, k, C, B); a VJP has that of the transpose, (C / B, k, k, D, B), turned by half a circle.
There are no derivatives of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from lsda_fast.kernels import native
from lsda_fast.kernels.geo_pad import edges
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.kept import has_values, holds, mark_of
from lsda_fast.kernels.norm_reference import jvp_reference, norm_reference, vjp_reference
from lsda_fast.kernels.norm_silu import PRODUCTS
from lsda_fast.kernels.packed import BLOCK, obstacle, packed, unpacked
from lsda_fast.kernels.registry import Operation
from lsda_fast.kernels.standard import affine

__all__ = [
    "both_filters",
    "convolved",
    "count_of",
    "filters",
    "flat_of",
    "image_of",
    "kept_filters",
    "norm_conv_products",
    "run_native",
    "spread",
    "suits",
    "wider",
]

Product = Callable[[Tensor, Tensor | None], Tensor]
_FILTERS: Any = WeakTensorKeyDictionary()


def norm_conv_products(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kernel: Tensor,
    shift: Tensor | None,
    pad: Sequence[Any],
    *,
    groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    add: Tensor | None = None,
) -> tuple[Tensor, Product, Product] | None:
    """The value, (v, add) -> J v + add and (u, add) -> J' u + add, past autograd; None where no native code takes it.

    Parameters
    ----------
    x : Tensor, shape (M, C, H, W)
        In torch's channels-last format. One member takes any number of v and u.
    weight, bias : Tensor, shape (C,), optional
        Of the norm.
    kernel, shift : Tensor, shape (D, C, k, k) and (D,), the second optional
        Of the convolution.
    pad : sequence
        What ``geo_pad`` is told; its margin is k // 2.
    groups, eps, silu
        As for ``norm_silu``.
    add : Tensor, shape (M, D, H, W), optional
        To the value.
    """
    C, k = kernel.shape[1:3]
    if not suits(x, kernel, pad):
        return None
    size, flat = x.shape[2:], flat_of(x)
    a, b = (t[0] for t in affine(x, C, weight, bias, None, None))
    settings = (groups, silu, [*size, *map(int, edges(x.shape, *pad))])
    if not VALUE.native(flat, a, b, kernel.new_empty(0, k, k, C, BLOCK), shift, None, *settings, eps):
        return None
    forward, backward = both_filters(kernel)
    y, kept = VALUE(flat, a, b, forward, shift, None if add is None else flat_of(add), *settings, eps)

    def product(operation: Operation, w: Tensor, t: Tensor, add: Tensor | None) -> Tensor:
        t = flat_of(t)
        count = len(t) // max(len(flat), 1)
        point = (flat, kept) if count == 1 else (flat.repeat(count, 1, 1), kept.repeat(count, 1, 1))
        return image_of(operation(t, *point, a, b, w, None if add is None else flat_of(add), *settings), size)

    return (
        image_of(y, size),
        lambda v, add: product(JVP, forward, v, add),
        lambda u, add: product(VJP, backward, u, add),
    )


def suits(x: Tensor, kernel: Tensor, pad: Sequence[Any]) -> bool:
    """Whether images (M, C, H, W), channels last, and a convolution of them are what C++ takes."""
    D, C, k, _ = kernel.shape
    last = x.ndim == 4 and x.movedim(1, -1).is_contiguous() and not x.is_contiguous()
    return last and x.dtype == kernel.dtype and not D % BLOCK and not C % BLOCK and pad[0] == k // 2


def both_filters(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a convolution and of its transpose, kept as long as the weight is there and stays as it is."""
    kept = _FILTERS.get(kernel)
    if kept and holds(kept[0], kernel):
        return kept[1]
    made, mark = (filters(kernel), filters(kernel.flip(2, 3).transpose(0, 1))), mark_of(kernel)
    if mark and has_values():
        _FILTERS[kernel] = mark, made
    return made


def kept_filters(kernel: Tensor) -> tuple[Tensor, ...]:
    """What is kept of a weight, if anything."""
    return _FILTERS[kernel][1] if kernel in _FILTERS else ()


def filters(kernel: Tensor) -> Tensor:
    """A convolution's weight (D, C, k, k) as the operations take it, (D / B, k, k, C, B)."""
    window = kernel.permute(2, 3, 1, 0)
    return packed(window.flatten(0, 2)).unflatten(1, window.shape[:3])


def flat_of(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def image_of(y: Tensor, size: Sequence[int]) -> Tensor:
    return y.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def kernel_of(w: Tensor) -> Tensor:
    return unpacked(w.flatten(1, 3)).unflatten(0, w.shape[1:4]).permute(3, 2, 0, 1)


def convolved(images: Tensor, w: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    return F.conv2d(image_of(images, size), kernel_of(w), bias).permute(0, 2, 3, 1).flatten(1, 2)


def _added(y: Tensor, add: Tensor | None) -> Tensor:
    return y if add is None else y + add


def wider(image: Sequence[int]) -> list[int]:
    H, W, n, *_ = image
    return [H + 2 * n, W + 2 * n]


def _value_reference(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    w: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    groups: int,
    silu: bool,
    image: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    y, kept = norm_reference(x, a[None], b[None], groups, True, silu, image, eps)
    return _added(convolved(y, w, bias, wider(image)), add), kept


def _jvp_reference(
    v: Tensor,
    x: Tensor,
    kept: Tensor,
    a: Tensor,
    b: Tensor,
    w: Tensor,
    add: Tensor | None,
    groups: int,
    silu: bool,
    image: Sequence[int],
) -> Tensor:
    y = jvp_reference(v, x, kept, a[None], b[None], groups, True, silu, image)
    return _added(convolved(y, w, None, wider(image)), add)


def _vjp_reference(
    u: Tensor,
    x: Tensor,
    kept: Tensor,
    a: Tensor,
    b: Tensor,
    w: Tensor,
    add: Tensor | None,
    groups: int,
    silu: bool,
    image: Sequence[int],
) -> Tensor:
    return _added(vjp_reference(spread(u, w, image), x, kept, a[None], b[None], groups, True, silu, image), add)


def spread(u: Tensor, w: Tensor, image: Sequence[int]) -> Tensor:
    """The transposed convolution, to images with margins."""
    images = F.pad(image_of(u, image[:2]), [w.shape[1] - 1] * 4)
    return F.conv2d(images, kernel_of(w)).permute(0, 2, 3, 1).flatten(1, 2)


def count_of(w: Tensor) -> int:
    """How many filters a packed weight has."""
    return w.shape[0] * w.shape[4]


def _value_empty(x: Tensor, a: Tensor, b: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:2], count_of(w)), x.new_empty(len(x), rest[2], 2)


def _jvp_empty(v: Tensor, x: Tensor, kept: Tensor, a: Tensor, b: Tensor, w: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], count_of(w))


def _run(
    product: str, out: Tensor, kept: Tensor, t: Tensor, x: Tensor, a: Tensor, b: Tensor, w: Tensor, *rest: Any
) -> None:
    bias, add, groups, silu, image, *eps = rest
    C = x.shape[2]
    D = w.shape[3] if product == "vjp" else count_of(w)
    settings = (groups, C // groups, D, silu, False, eps[0] if eps else 0.0)
    run_native(product, image, (out, kept, t, x, a, b, w, bias, add), settings)


def run_native(product: str, image: Sequence[int], tensors: Sequence[Tensor | None], settings: Sequence[Any]) -> None:
    """The C++ of norm and convolution, or of the convolution alone (``geo_conv``), as ``csrc/bind`` has it."""
    t, (groups, width, D, *_) = tensors[2], settings
    assert t is not None
    frame = (*image[:3], *map(bool, image[3:]))
    scratch = t.new_empty(native.load("cpu").code.norm_conv_scratch(groups * width, D, *frame, torch.get_num_threads()))
    native.run("norm_conv", t.dtype, PRODUCTS.index(product), *tensors, scratch, len(t), *settings, *frame)


def _limits(x: Tensor, a: Tensor, b: Tensor, w: Tensor, groups: int, image: Sequence[int]) -> str:
    width, most = x.shape[2] // groups, native.load("cpu").code.build_info()["columns"]
    return obstacle(w.shape[4]) or (f"groups of {width} channels; C++ takes up to {most}" if width > most else "")


def _value_limits(x: Tensor, a: Tensor, b: Tensor, w: Tensor, *rest: Any) -> str:
    bias, add = rest[:2]
    # A weight of no filters asks about everything else.
    if bias is not None and len(w) and bias.shape != (count_of(w),):
        return f"a bias {tuple(bias.shape)} of {count_of(w)} channels"
    return _alike(x, (*x.shape[:2], count_of(w)), add) or _limits(x, a, b, w, rest[2], rest[4])


def _derivative_limits(t: Tensor, x: Tensor, kept: Tensor, a: Tensor, b: Tensor, w: Tensor, *rest: Any) -> str:
    return _alike(x, (*x.shape[:2], count_of(w)), rest[0], t, kept) or _limits(x, a, b, w, rest[1], rest[3])


def _alike(x: Tensor, out: Sequence[int], add: Tensor | None, *rest: Tensor) -> str:
    """Why images of so many members, and what is added to their result, do not go together; "" where they do."""
    if any(len(t) != len(x) for t in rest):
        return f"{', '.join(str(len(t)) for t in rest)} members beside {len(x)}; C++ takes as many"
    return f"{tuple(add.shape)} to be added to {tuple(out)}" if add is not None and add.shape != tuple(out) else ""


_SETTINGS = "int groups, bool silu, int[] image"
_WHERE = "Tensor x, Tensor kept, Tensor a, Tensor b, Tensor w, Tensor? add"
VALUE = Operation(
    f"norm_conv(Tensor x, Tensor a, Tensor b, Tensor w, Tensor? bias, Tensor? add, {_SETTINGS}, float eps)"
    " -> (Tensor, Tensor)",
    reference=_value_reference,
    empty=_value_empty,
    natives={"cpu": Native(lambda out, x, *rest: _run("value", *out, x, x, *rest), _value_limits)},
)


def _derivative(product: str, of: str, reference: Callable[..., Tensor], empty: Callable[..., Tensor]) -> Operation:
    def run(out: Tensor, t: Tensor, x: Tensor, kept: Tensor, a: Tensor, b: Tensor, w: Tensor, *rest: Any) -> None:
        _run(product, out, kept, t, x, a, b, w, None, *rest)

    return Operation(
        f"norm_conv_{product}(Tensor {of}, {_WHERE}, {_SETTINGS}) -> Tensor",
        reference=reference,
        empty=empty,
        natives={"cpu": Native(run, _derivative_limits)},
    )


JVP = _derivative("jvp", "v", _jvp_reference, _jvp_empty)
VJP = _derivative("vjp", "u", _vjp_reference, lambda u, x, *rest: x.new_empty(x.shape))
